"""A stack of self-attention blocks in which each token sees its whole document (Devlin et al. 2018): BERT and its kin.

Token, kind and position vectors are added before their norm, as in BERT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmfactory.core.context import Context, FullMask, SegmentMask
from llmfactory.model.text import TextModel

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class Encoder(TextModel):
    """tokens [B, T] -> hidden [B, T, D]."""

    causal = False

    def context(self, batch: Batch, isolated: bool = True) -> Context:
        """Each token sees all of its document, before and behind it; `types` say which kind of text it is."""
        tokens_BT, segments_BT = batch["tokens"], batch["segments"] if isolated else None
        mask = FullMask(tokens_BT.shape[1], tokens_BT.device) if segments_BT is None else SegmentMask(segments_BT)
        return Context(batch["positions"], mask, segments=segments_BT, types=batch.get("types"))
