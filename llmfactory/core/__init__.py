"""Vocabulary that every other subpackage speaks: specs, batches, contexts, parameter declarations, errors."""
