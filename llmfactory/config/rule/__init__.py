"""Rules between the parts of a job, by subject. `config/rules.py` is the list of all."""
