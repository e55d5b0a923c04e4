"""YaRN (Peng et al. 2023, sections 3.2 and 3.4): frequencies by parts, and larger products of queries and keys.

A pair that turns `fast` times or more over the trained length keeps its frequency, one that turns `slow` times or less has it
divided by the factor, and between them the share of the division rises linearly with the number of the pair.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmfactory.model.position.scaling.part import Scaling, plain
from llmfactory.model.position.scaling.spec import Yarn


class YarnScaling(Scaling):
    def __init__(self, spec: Yarn) -> None:
        self.stretch, self.trained = spec.factor, spec.trained_positions
        self.fast, self.slow, self.whole_pairs = spec.fast, spec.slow, spec.whole_pairs
        self.factor = 0.1 * math.log(spec.factor) + 1.0 if spec.attention_factor is None else spec.attention_factor

    def frequencies(self, theta: float, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Tensor:
        kept = plain(theta, width, positions_BT.device, dtype)
        first, last = self._pair(self.fast, theta, width), self._pair(self.slow, theta, width)
        if self.whole_pairs:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        length = last - first if last != first else 0.001
        pair = torch.arange(width // 2, device=kept.device, dtype=dtype)
        divided = ((pair - first) / length).clamp(0, 1)
        return kept / self.stretch * divided + kept * (1 - divided)

    def _pair(self, rotations: float, theta: float, width: int) -> float:
        """Number of the pair, with a fraction, that turns so many times over the trained length."""
        return width * math.log(self.trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))
