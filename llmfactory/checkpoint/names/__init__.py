"""Families of published models: their configs and tensor names beside ours, in both directions."""
