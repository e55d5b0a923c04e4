"""What a record of a source means, an option of data/form each; spec.py is the catalogue page."""
