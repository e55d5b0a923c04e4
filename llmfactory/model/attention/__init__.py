"""Options of the group model/attention; spec.py is the catalogue page."""
