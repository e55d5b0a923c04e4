"""Position interpolation (Chen et al. 2023, equation 4): position m becomes m / factor."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.model.position.scaling.part import Scaling, plain
from llmfactory.model.position.scaling.spec import Linear


class LinearScaling(Scaling):
    def __init__(self, spec: Linear) -> None:
        self.stretch = spec.factor

    def frequencies(self, theta: float, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
        return plain(theta, width, positions_BT.device, dtype) / self.stretch
