"""How a conversation is written out, an option of data/form/template each; spec.py is the catalogue page."""
