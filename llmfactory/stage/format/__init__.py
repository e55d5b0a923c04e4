"""Options of the group stage/format; spec.py is the catalogue page."""
