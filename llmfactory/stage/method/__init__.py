"""How models are merged, an option of stage/method each; spec.py is the catalogue page."""
