"""Options of the group data/pack; spec.py is the catalogue page."""
