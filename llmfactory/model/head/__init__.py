"""Options of the group model/head; spec.py is the catalogue page."""
