"""The interface of position parts."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.model.part import Part


class Position(Part):
    """Where a token stands. Each method changes nothing unless a part says otherwise."""

    limit: int | None = None
    """Number of positions that exist at all; None: every position has a meaning."""

    def embed(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Add position vectors to the embeddings [B, T, D]."""
        return x_BTD

    def prepare(self, context: Context, dtype: torch.dtype) -> Context:
        """Put what all layers share (rotary tables, a score bias) into the context; called once a forward.

        `dtype` is that of the residual stream; tables are float64 for a float64 model and float32 otherwise.
        """
        return context

    def rotate(self, q_BHTD: Tensor, k_BHTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys [B, H, T, D] by their positions."""
        return q_BHTD, k_BHTD
