"""Options of the group model/position/scaling; spec.py is the catalogue page."""
