"""Trained score biases by the distance of two tokens, in buckets (Raffel et al. 2020, section 2.1).

Near distances have a bucket each, far ones share buckets that grow like the logarithm of the distance, and everything beyond
`max_distance` is in the last. Without a causal mask half of the buckets are for keys after the query. One table serves all
layers of a stack.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Normal, Parameter
from llmfactory.kernel.embedding import embedding
from llmfactory.model.frame import Frame
from llmfactory.model.position.distance import distances
from llmfactory.model.position.part import Position
from llmfactory.model.position.spec import T5Bias


class BucketBias(Position):
    """context.bias [1 or B, H, T, S] = weight[bucket of the distance]."""

    is_shared = True

    def __init__(self, spec: T5Bias, frame: Frame) -> None:
        super().__init__()
        self.n_buckets, self.max_distance = spec.n_buckets, spec.max_distance
        self.causal, self.std = frame.causal, frame.std
        self.weight = nn.Parameter(torch.zeros(spec.n_buckets, frame.n_heads))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Normal(self.std))}

    def prepare(self, context: Context, dtype: torch.dtype) -> Context:
        buckets_BTS = bucket(distances(context), self.n_buckets, self.max_distance, self.causal)
        return context.with_(bias=embedding(buckets_BTS, self.weight).permute(0, 3, 1, 2).contiguous())


def bucket(distance: Tensor, n_buckets: int, max_distance: int, causal: bool) -> Tensor:
    """Number of the bucket of each distance, key minus query."""
    if causal:
        offset, away = torch.zeros_like(distance), (-distance).clamp_min(0)
    else:
        n_buckets //= 2
        offset, away = (distance > 0).long() * n_buckets, distance.abs()
    exact = n_buckets // 2
    # Logarithms in float32, so that a distance at the edge of a bucket falls as in the published weights.
    share = (away.clamp_min(1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (share * (n_buckets - exact)).long()).clamp_max(n_buckets - 1)
    return offset + torch.where(away < exact, away, far)
