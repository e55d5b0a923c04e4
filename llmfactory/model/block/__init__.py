"""Options of the group model/block; spec.py is the catalogue page."""
