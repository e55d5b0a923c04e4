"""What policies and critics are trained on, token by token: pure functions of log-probabilities, advantages and values.

    ratio_t = p(a_t) / p_old(a_t)
    policy:  max(-A_t ratio_t, -A_t clip(ratio_t, 1 - low, 1 + high))          (Schulman et al. 2017, equation 7; DAPO, Yu et al. 2025,
                                                                                equation 10, has two bounds)
    value:   max((V_t - R_t)^2, (V_old,t + clip(V_t - V_old,t, -c, c) - R_t)^2) / 2
    KL:      k1 = -log r, k3 = (r - 1) - log r, with r = q(a) / p(a) and a ~ p: both have the mean KL(p || q)  (Schulman 2020)

Shapes: any, the same for all arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_policy_loss(logp: Tensor, old_logp: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The loss of each token, and where the bound holds it back (no gradient there)."""
    ratio = (logp - old_logp).exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    plain, clipped = -advantage * ratio, -advantage * bounded
    return torch.maximum(plain, clipped), clipped > plain


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """The loss of each value; `clip`: how far a value may move from the old one for its sake, None: any distance."""
    loss = (value - target).square()
    if clip is not None:
        near = old_value + (value - old_value).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - target).square())
    return loss / 2


def k1(logp: Tensor, other: Tensor) -> Tensor:
    """Estimate of KL(p || q) at a token that p has drawn: log p - log q. It has no bias, and may be negative."""
    return logp - other


def k3(logp: Tensor, other: Tensor) -> Tensor:
    """Estimate of KL(p || q) at a token that p has drawn, never negative and without bias: (r - 1) - log r, r = q / p."""
    gap = other - logp
    return gap.expm1() - gap
