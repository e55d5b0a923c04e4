"""From logits to the next token: pure functions, all randomness comes in as numbers.

Filters apply in the order repetition penalty, temperature, top-k, top-p, min-p, each to what the one before left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn from a model's distribution."""

    temperature: float = 1.0
    """Divides the logits; 0: always the most likely token."""
    top_k: int | None = None
    """Draw among that many most likely tokens; None: among all."""
    top_p: float | None = None
    """Draw among the fewest most likely tokens whose probabilities add up to it; None: no limit."""
    min_p: float | None = None
    """Draw among tokens at least that share as likely as the most likely one; None: no limit."""
    repetition_penalty: float = 1.0
    """Logits of tokens that stand in the row already are divided by it if positive, multiplied if negative; 1: left alone."""


GREEDY = Sampling(temperature=0.0)


def penalize(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make the seen tokens less likely, whatever the sign of their logits (Keskar et al. 2019, section 4.1)."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


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


def keep_min_p(logits_BV: Tensor, p: float) -> Tensor:
    """-inf at tokens less likely than p times the most likely one (Nguyen et al. 2024)."""
    probabilities_BV = logits_BV.softmax(-1)
    return logits_BV.masked_fill(probabilities_BV < p * probabilities_BV.amax(-1, keepdim=True), float("-inf"))


def distribution(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The probabilities [B, V] that tokens are drawn from, in float64; temperature above 0."""
    logits_BV = logits_BV.double() / sampling.temperature
    if sampling.top_k is not None:
        logits_BV = keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None:
        logits_BV = keep_top_p(logits_BV, sampling.top_p)
    if sampling.min_p is not None:
        logits_BV = keep_min_p(logits_BV, sampling.min_p)
    return logits_BV.softmax(-1)


def draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Token ids [B] by inversion: the first whose cumulated probability exceeds the row's uniform number in [0, 1)."""
    total_BV = probabilities_BV.cumsum(-1)
    # The sum may round to just below 1: scale the number, so that it always falls on a token that has a probability.
    target_B1 = uniform_B[:, None].to(total_BV) * total_BV[:, -1:]
    return torch.searchsorted(total_BV, target_B1, right=True)[:, 0].clamp_max(probabilities_BV.shape[-1] - 1)


def sample(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling, seen_BV: Tensor | None = None) -> Tensor:
    """Next token ids [B]; temperature 0: the most likely ones. `seen_BV`: tokens that stand in the row already."""
    if seen_BV is not None:
        logits_BV = penalize(logits_BV, seen_BV, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    return draw(distribution(logits_BV, sampling), uniform_B)
