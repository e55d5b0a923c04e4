"""Catalogue of the steps that clean a corpus.    llmfactory 'data/clean=[unicode,gopher_quality,exact]'

A job has a list of them, and they work in its order. Each is known by the name of its option: data.clean.gopher_quality.min_words=20.
"""

from __future__ import annotations

from llmfactory.data.clean.base_spec import CleanSpec as CleanSpec
