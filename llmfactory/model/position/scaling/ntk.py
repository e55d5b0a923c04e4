"""A larger base (Peng et al. 2023, definition 1): theta factor^(D / (D - 2)), which divides the slowest frequency by the factor."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.model.position.scaling.part import Scaling, plain
from llmfactory.model.position.scaling.spec import Ntk


class NtkScaling(Scaling):
    def __init__(self, spec: Ntk) -> None:
        self.stretch = spec.factor

    def frequencies(self, theta: float, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
        return plain(theta * self.stretch ** growth(width), width, positions_BT.device, dtype)


def growth(width: int) -> float:
    """D / (D - 2); a single pair, whose frequency is 1, has no slowest one to stretch."""
    return width / (width - 2) if width > 2 else 1.0
