"""The NTK base by the length L of a row, trained on L': theta (factor L / L' - factor + 1)^(D / (D - 2)) where L > L'
(Peng et al. 2023, section 3.3; in the form of the Hugging Face library).

A row's length is the largest of its positions and one. It is its own, whoever shares the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.model.position.scaling.ntk import growth
from llmfactory.model.position.scaling.part import Scaling, plain
from llmfactory.model.position.scaling.spec import DynamicNtk


class DynamicNtkScaling(Scaling):
    def __init__(self, spec: DynamicNtk) -> None:
        self.stretch, self.trained = spec.factor, spec.trained_positions

    def frequencies(self, theta: float, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
        length_B = (positions_BT.amax(-1) + 1).clamp_min(self.trained).to(dtype)
        stretched_B = theta * (self.stretch * length_B / self.trained - (self.stretch - 1)) ** growth(width)
        return plain(stretched_B[:, None, None, None], width, positions_BT.device, dtype)
