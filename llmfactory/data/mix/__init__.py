"""Options of the group data/mix; spec.py is the catalogue page."""
