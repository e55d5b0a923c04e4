"""Options of the group data/source; spec.py is the catalogue page."""
