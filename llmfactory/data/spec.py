"""Catalogue of data: a source of documents, a tokenizer, a way of packing, and how they are split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least
from llmfactory.data.pack.spec import PackSpec
from llmfactory.data.source.spec import SourceSpec
from llmfactory.data.tokenizer.spec import TokenizerSpec


@dataclass(kw_only=True, slots=True)
class Corpus(Spec):
    """Documents of one source, tokenized once, kept as memory-mapped token files, cut into rows when read."""

    source: SourceSpec
    tokenizer: TokenizerSpec
    pack: PackSpec
    seq_len: int
    """Tokens in a row, T."""
    held_out: float = 0.05
    """Share of the documents (by text length) kept for evaluation; split by a hash of the document's group, so that it is stable."""
    cache: str | None = None
    """Folder of prepared data; None: llmfactory/ in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    workers: int | None = None
    """Threads that tokenize; None: as many as the machine has cores. The result does not depend on it."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 2, "seq_len")
        if not 0.0 <= self.held_out <= 0.9:
            yield Problem("held_out", self.held_out, "must lie between 0.0 and 0.9", "held_out=0.05")
        yield from at_least(self, 1, "workers")
