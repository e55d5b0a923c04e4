"""Catalogue of packings: how documents become rows of T tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least

if TYPE_CHECKING:
    from llmfactory.data.pack.rows import Rows
    from llmfactory.data.tokens import TokenFile


@dataclass(kw_only=True, slots=True)
class PackSpec(Spec):
    """Base of the packings."""

    def build(self, tokens: TokenFile, seq_len: int) -> Rows:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of data/pack")


@dataclass(kw_only=True, slots=True)
class Concat(PackSpec):
    """All documents in one stream, cut every T tokens; no padding, no token left out but the last partial row."""

    isolate: bool = True
    """Keep documents apart: positions restart, no attention and no target across a border. False: the row is one text (GPT-2)."""

    def build(self, tokens: TokenFile, seq_len: int) -> Rows:
        from llmfactory.data.pack.concat import ConcatRows, ConversationRows

        if self.isolate and tokens.skipped:
            return ConversationRows(tokens, seq_len)
        return ConcatRows(self, tokens, seq_len)


@dataclass(kw_only=True, slots=True)
class Document(PackSpec):
    """One document a row, padded on the right; longer documents continue in further rows."""

    def build(self, tokens: TokenFile, seq_len: int) -> Rows:
        from llmfactory.data.pack.document import DocumentRows

        return DocumentRows(tokens, seq_len)


@dataclass(kw_only=True, slots=True)
class BestFit(PackSpec):
    """Whole documents, several to a row so that little room is left; no document that fits into a row is cut (Ding et al. 2024)."""

    def build(self, tokens: TokenFile, seq_len: int) -> Rows:
        from llmfactory.data.pack.best_fit import BestFitRows

        return BestFitRows(tokens, seq_len)


@dataclass(kw_only=True, slots=True)
class Grouped(PackSpec):
    """One document a row, rows of similar length together in a batch, which is only as wide as its longest; longer documents
    continue in further rows."""

    group: int = 512
    """Rows of similar length that are drawn one after the other: fewer need less padding, more mix better."""
    multiple: int = 64
    """Batches are as wide as a multiple of it (or data.seq_len), so that kernels see few shapes."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "group", "multiple")

    def width(self, longest: int, seq_len: int) -> int:
        """Of a batch whose longest row has so many tokens."""
        return min(-(-longest // self.multiple) * self.multiple, seq_len)

    def build(self, tokens: TokenFile, seq_len: int) -> Rows:
        from llmfactory.data.pack.grouped import GroupedRows

        return GroupedRows(self, tokens, seq_len)
