"""Stages of a model's life: LightningModules for training, plain jobs for the rest."""
