"""What turns plain rows into the task of an objective: masks, missing spans, orders. Numpy, per row, without state."""
