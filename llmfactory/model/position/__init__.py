"""Options of the group model/position; spec.py is the catalogue page."""
