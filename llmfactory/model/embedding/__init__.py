"""Options of the group model/embedding; spec.py is the catalogue page."""
