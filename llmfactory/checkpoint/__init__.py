"""Training state on disk: atomic, pickle-free, independent of the layout."""
