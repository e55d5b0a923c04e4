"""From logits to the next token: pure functions, all randomness comes in as numbers.

Filters apply in the order temperature, top-k, top-p, each to what the one before left.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """-inf everywhere but at the k largest logits of each row (Fan et al. 2018); equals of the k-th stay in."""
    if k >= logits_BV.shape[-1]:
        return logits_BV
    lowest_B1 = logits_BV.topk(k, -1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < lowest_B1, float("-inf"))


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """-inf everywhere but at the fewest most likely tokens that reach probability p together (Holtzman et al. 2020)."""
    if p >= 1.0:
        return logits_BV
    sorted_BV, order_BV = logits_BV.sort(stable=True, dim=-1, descending=True)
    probabilities_BV = sorted_BV.softmax(-1)
    before_BV = probabilities_BV.cumsum(-1) - probabilities_BV  # of the more likely ones: 0 for the first, which always stays
    dropped_BV = torch.zeros_like(before_BV, dtype=torch.bool).scatter(-1, order_BV, before_BV >= p)
    return logits_BV.masked_fill(dropped_BV, float("-inf"))


def distribution(logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """The probabilities [B, V] that tokens are drawn from, in float64; temperature above 0."""
    logits_BV = logits_BV.double() / temperature
    if top_k is not None:
        logits_BV = keep_top_k(logits_BV, top_k)
    if top_p is not None:
        logits_BV = keep_top_p(logits_BV, top_p)
    return logits_BV.softmax(-1)


def draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Token ids [B] by inversion: the first whose cumulated probability exceeds the row's uniform number in [0, 1)."""
    total_BV = probabilities_BV.cumsum(-1)
    # The sum may round to just below 1: scale the number, so that it always falls on a token that has a probability.
    target_B1 = uniform_B[:, None].to(total_BV) * total_BV[:, -1:]
    return torch.searchsorted(total_BV, target_B1, right=True)[:, 0].clamp_max(probabilities_BV.shape[-1] - 1)


def sample(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Next token ids [B]; temperature 0: the most likely ones."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    return draw(distribution(logits_BV, temperature, top_k, top_p), uniform_B)
