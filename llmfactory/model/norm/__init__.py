"""Options of the group model/norm; spec.py is the catalogue page."""
