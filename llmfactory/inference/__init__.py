"""Decoding: cache, sampler, generation loop."""
