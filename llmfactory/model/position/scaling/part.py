"""The interface of scalings."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Scaling(ABC):
    """Angular frequencies of the pairs of coordinates, and a factor of the tables of cosines and sines."""

    factor: float = 1.0

    @abstractmethod
    def frequencies(self, theta: float, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """[width / 2] (or [B, 1, 1, width / 2] where rows differ), radians a position; pair i is theta^(-2i/width) by itself."""


def plain(theta: float | Tensor, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """theta^(-2i/width), [..., width / 2]."""
    pair = torch.arange(0, width, 2, device=device, dtype=dtype) / width
    return 1.0 / theta**pair
