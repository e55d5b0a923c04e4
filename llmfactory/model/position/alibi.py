"""Attention with linear biases (Press et al. 2022): a score falls by the slope of its head for each place of distance.

The slopes of n heads are 2^(-8i/n), i = 1..n, where n is a power of two. Otherwise those of the next lower power of two come
first, then every other one of twice as many (the paper's published code). Without a causal mask the distance counts both ways.
"""

from __future__ import annotations

import torch

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Frame
from llmfactory.model.position.distance import distances
from llmfactory.model.position.part import Position


class LinearBias(Position):
    """context.bias [1 or B, H, T, S] = -slope |distance|."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.slopes = slopes(frame.n_heads)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def prepare(self, context: Context, dtype: torch.dtype) -> Context:
        wide = torch.promote_types(dtype, torch.float32)
        distance_BTS = distances(context).abs().to(wide)
        slope_H = torch.tensor(self.slopes, device=distance_BTS.device, dtype=wide)
        return context.with_(bias=-slope_H[:, None, None] * distance_BTS[:, None])


def slopes(n_heads: int) -> list[float]:
    """Of each head."""
    power = 1 << (n_heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power + 1, 2)]
    return first + between[: n_heads - power]
