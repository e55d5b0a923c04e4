"""Rotary frequencies as they are (Su et al. 2021, equation 15)."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.model.position.scaling.part import Scaling, plain


class NoScaling(Scaling):
    def frequencies(self, theta: float, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
        return plain(theta, width, positions_BT.device, dtype)
