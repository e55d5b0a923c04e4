"""Options of the group model/connector; spec.py is the catalogue page."""
