"""Skeletons (one file a forward graph) and, in the folders below, the parts that they are built from."""
