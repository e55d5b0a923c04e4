"""Catalogue of packings: how documents become rows of T tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.spec import Spec

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
        from llmfactory.data.pack.concat import ConcatRows

        return ConcatRows(self, tokens, seq_len)


@dataclass(kw_only=True, slots=True)
class Document(PackSpec):
    """One document a row, padded on the right; longer documents continue in further rows."""

    def build(self, tokens: TokenFile, seq_len: int) -> Rows:
        from llmfactory.data.pack.document import DocumentRows

        return DocumentRows(tokens, seq_len)
