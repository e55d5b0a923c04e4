"""What holds a model near the one that training starts from, an option of stage/anchor each; spec.py is the catalogue page."""
