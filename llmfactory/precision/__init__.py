"""Number formats of a training step."""
