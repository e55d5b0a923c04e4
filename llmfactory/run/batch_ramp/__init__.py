"""Ways for the batch to grow in the course of a run, an option of trainer/batch_ramp each; spec.py is the catalogue page."""
