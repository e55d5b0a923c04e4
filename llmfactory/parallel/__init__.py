"""The engine: device mesh, layouts and the one Lightning strategy."""
