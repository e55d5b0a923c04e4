"""Training objectives: pure functions of (outputs, batch)."""
