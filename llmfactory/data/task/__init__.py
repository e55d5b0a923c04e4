"""Labelled examples: what a record means, how it becomes a row."""
