"""How first weights and learning rates follow a model's width, an option of optim/width each; spec.py is the catalogue page."""
