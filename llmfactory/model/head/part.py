"""The interface of heads."""

from __future__ import annotations

from torch import Tensor

from llmfactory.model.part import Part


class Head(Part):
    """Hidden vectors [..., D] -> logits [..., V], by a matrix that a loss may take instead, to fuse the product with itself."""

    weight: Tensor
    """[V, D]; the embedding's when it is tied."""
    bias: Tensor | None
    """[V], or None."""

    def features(self, hidden: Tensor) -> Tensor:
        """What the matrix is multiplied with, [..., D]: the hidden vectors, unless a head transforms them first."""
        return hidden
