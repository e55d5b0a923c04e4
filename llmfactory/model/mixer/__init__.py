"""Options of the group model/mixer; spec.py is the catalogue page."""
