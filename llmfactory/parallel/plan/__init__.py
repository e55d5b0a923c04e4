"""Memory, messages and time of a parallel layout, and the choice of one, by arithmetic; spec.py is the catalogue of devices."""
