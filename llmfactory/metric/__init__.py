"""How good predictions are: pure functions of predictions and references."""
