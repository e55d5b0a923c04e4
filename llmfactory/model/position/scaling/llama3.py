"""The scaling of LLaMA 3.1 (Dubey et al. 2024; formula from the published code).

A pair that turns `high` times or more over the trained length keeps its frequency, one that turns less than `low` times has it
divided by the factor, and between them the share of the division falls linearly with the number of turns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmfactory.model.position.scaling.part import Scaling, plain
from llmfactory.model.position.scaling.spec import Llama3


class Llama3Scaling(Scaling):
    def __init__(self, spec: Llama3) -> None:
        self.stretch, self.trained, self.low, self.high = spec.factor, spec.trained_positions, spec.low, spec.high

    def frequencies(self, theta: float, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
        kept = plain(theta, width, positions_BT.device, dtype)
        turns = self.trained * kept / (2 * math.pi)
        smooth = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - smooth) * kept / self.stretch + smooth * kept
