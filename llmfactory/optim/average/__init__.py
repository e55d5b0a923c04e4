"""Means of weights over the course of a training, an option of optim/average each; spec.py is the catalogue page."""
