"""How much better an answer, or a token of it, was than expected. Everything is computed over a whole rollout, before its first step.

Of groups of G answers to a prompt with rewards r_i:

    GRPO (Shao et al. 2024, section 4.1.2):       A_i = (r_i - mean(r)) / (std(r) + eps), std with G - 1
    Dr. GRPO (Liu et al. 2025, section 3.2):      A_i = r_i - mean(r)
    RLOO (Ahmadian et al. 2024, equation 4):      A_i = r_i - mean of the others' rewards

Of tokens with rewards r_t and values V_t, V behind the last one being 0 (Schulman et al. 2016, equations 11, 16):

    delta_t = r_t + gamma V_{t+1} - V_t,     A_t = sum_l (gamma lambda)^l delta_{t+l},     R_t = A_t + V_t

Shapes: N answers, P prompts, G answers of a prompt, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.objective.policy_spec import Baseline

EPS = 1e-4
"""Beside a group's standard deviation, so that equal rewards give 0."""


def group_advantages(rewards_PG: Tensor, baseline: Baseline) -> Tensor:
    """[P, G]. A group of equal rewards has advantages of exactly 0."""
    G = rewards_PG.shape[1]
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    centred_PG = centred_PG.where(~all_equal(rewards_PG)[:, None], 0.0)  # not what rounding the mean leaves
    if baseline is Baseline.mean_std:
        return centred_PG / (rewards_PG.std(1, keepdim=True) + EPS)
    return centred_PG * (G / (G - 1)) if baseline is Baseline.leave_one_out else centred_PG


def all_equal(rewards_PG: Tensor) -> Tensor:
    """[P]: whether a group has nothing to tell."""
    return (rewards_PG == rewards_PG[:, :1]).all(1)


def long_answer_penalty(lengths_N: Tensor, most: int, interval: int) -> Tensor:
    """[N], from 0 to -1 over the last `interval` of `most` tokens (DAPO, Yu et al. 2025, equation 13)."""
    free = most - interval
    return -((lengths_N - free).clamp(0, interval) / interval)


def token_rewards(scores_N: Tensor, kl_NT: Tensor, kept_NT: Tensor, coef: float) -> Tensor:
    """[N, T]: each token pays for its divergence from the reference, the last one of an answer gets the answer's score (Ziegler et
    al. 2019, equation 2)."""
    rewards_NT = -coef * kl_NT * kept_NT
    places_T = torch.arange(kept_NT.shape[1], device=kept_NT.device)
    last_N = (places_T * kept_NT).argmax(1)
    rewards_NT[torch.arange(len(last_N)), last_N] += scores_N * kept_NT.any(1)
    return rewards_NT


def generalized_advantages(
    rewards_NT: Tensor, values_NT: Tensor, kept_NT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and what values should have been, [N, T] each; 0 at tokens that are none of an answer's, which stand together."""
    advantages_NT = torch.zeros_like(values_NT)
    following_N = advantage_N = torch.zeros_like(values_NT[:, 0])
    for t in reversed(range(values_NT.shape[1])):
        kept_N = kept_NT[:, t]
        delta_N = rewards_NT[:, t] + gamma * following_N - values_NT[:, t]
        advantage_N = (delta_N + gamma * lam * advantage_N).where(kept_N, 0.0)
        following_N = values_NT[:, t].where(kept_N, 0.0)
        advantages_NT[:, t] = advantage_N
    return advantages_NT, (advantages_NT + values_NT) * kept_NT


def whitened(x_NT: Tensor, kept_NT: Tensor, shift: bool = True) -> Tensor:
    """Divided by the standard deviation over the tokens that are kept, with `shift` around a mean of 0; 0 elsewhere."""
    kept = x_NT[kept_NT]
    if not len(kept):
        return x_NT
    mean = kept.mean()
    white_NT = (x_NT - mean) * (kept.var(correction=0) + 1e-8).rsqrt()
    return (white_NT if shift else white_NT + mean) * kept_NT


def adapted(coef: float, kl: float, target: float) -> float:
    """The next factor of the penalty: larger where the divergence was above its target (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + 0.1 * error)
