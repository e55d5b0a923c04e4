"""Options of the group model/ffn; spec.py is the catalogue page."""
