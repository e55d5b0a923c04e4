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
BLOCK = 256
"""Tokens whose probabilities are added up before one of them is drawn."""


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
    if sampling.top_k is None and sampling.top_p is None and sampling.min_p is None:
        return draw_by_blocks(logits_BV / sampling.temperature, uniform_B)
    return draw(distribution(logits_BV, sampling), uniform_B)


def draw_by_blocks(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """`draw` from the softmax of logits: first a block of tokens by its share, then a token in it. Only sums are float64, so that a
    large vocabulary is gone through once, in the format that it comes in."""
    exact = torch.promote_types(logits_BV.dtype, torch.float32)
    V, blocks = logits_BV.shape[-1], -(-logits_BV.shape[-1] // BLOCK)
    mass_BV = torch.nn.functional.pad((logits_BV - logits_BV.amax(-1, keepdim=True)).to(exact).exp(), (0, blocks * BLOCK - V))
    mass_BNK = mass_BV.view(-1, blocks, BLOCK)
    upto_BN = mass_BNK.sum(-1, dtype=torch.float64).cumsum(-1)
    target_B1 = uniform_B[:, None].to(upto_BN) * upto_BN[:, -1:]
    block_B1 = torch.searchsorted(upto_BN, target_B1, right=True).clamp_max(blocks - 1)
    before_B1 = torch.where(block_B1 > 0, upto_BN.gather(1, (block_B1 - 1).clamp_min(0)), 0.0)
    inside_BK = mass_BNK[torch.arange(len(mass_BNK), device=block_B1.device), block_B1[:, 0]].double()
    upto_BK = inside_BK.cumsum(-1)
    # What rounding leaves beyond the block's last token that has a probability falls on that one.
    last_B1 = (torch.arange(BLOCK, device=upto_BK.device) * (inside_BK > 0)).amax(-1, keepdim=True)
    place_B1 = torch.searchsorted(upto_BK, target_B1 - before_B1, right=True).minimum(last_B1)
    return (block_B1 * BLOCK + place_B1)[:, 0]
