"""The interface of position parts."""

from __future__ import annotations

from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.model.part import Part


class Position(Part):
    """Where a token stands. Each method changes nothing unless a part says otherwise."""

    def embed(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Add position vectors to the embeddings [B, T, D]."""
        return x_BTD

    def prepare(self, context: Context) -> Context:
        """Put what all layers share (rotary tables, a score bias) into the context; called once a forward."""
        return context

    def rotate(self, q_BHTD: Tensor, k_BHTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys [B, H, T, D] by their positions."""
        return q_BHTD, k_BHTD
