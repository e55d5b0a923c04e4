"""Options of the group data/tokenizer; spec.py is the catalogue page."""
