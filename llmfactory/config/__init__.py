"""Composition: schemas, parsing, cross-group rules, provenance. Only this package and `run` import Hydra."""
