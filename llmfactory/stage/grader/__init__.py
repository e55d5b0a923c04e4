"""Where rewards of written answers come from, an option of stage/grader each; spec.py is the catalogue page."""
