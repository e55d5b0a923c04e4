"""The interface of position parts."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.core.errors import UserError
from llmfactory.model.part import Part


class Position(Part):
    """Where a token stands. Each method changes nothing unless a part says otherwise."""

    limit: int | None = None
    """Number of positions that exist at all; None: every position has a meaning."""
    is_shared: bool = False
    """Whether `prepare` uses its parameters, so that all layers do."""

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


def one_axis(positions: Tensor) -> Tensor:
    """[B, T] as they are. Raises UserError for [B, R, T], which such a part cannot tell apart."""
    if positions.dim() != 2:
        axes = positions.shape[1]
        raise UserError(
            f"tokens have {axes} positions each here (an objective with blanks): use model/position=rope_2d or learned_2d"
        )
    return positions


def two_axes(positions: Tensor) -> Tensor:
    """[B, 2, T] as they are; [B, T] is a text without blanks."""
    return torch.stack((positions, torch.zeros_like(positions)), 1) if positions.dim() == 2 else positions
