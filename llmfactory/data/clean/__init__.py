"""Steps that a corpus goes through before it is tokenized, an option of data/clean each; spec.py is the catalogue page."""
