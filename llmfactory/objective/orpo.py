"""Odds ratio preference optimization (Hong et al. 2024, equations 4, 6 and 7).

    P = exp(log p(y | x) / |y|),     odds = P / (1 - P)
    loss = -sum log p(y_c | x) / tokens of the chosen answers - beta log sigmoid(log odds_c - log odds_r), the mean over pairs

Two terms with a denominator each: the first is over tokens, the second over pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmfactory.objective.pairs import PairObjective, Side, logistic
from llmfactory.objective.preference_spec import Orpo, Reference


class OrpoObjective(PairObjective):
    def __init__(self, spec: Orpo, reference: Reference) -> None:
        PairObjective.__init__(self, reference, nll=1.0)
        self.spec = spec

    def pair_loss(self, chosen: Side, rejected: Side) -> Tensor:
        return self.spec.beta * logistic(log_odds(chosen.mean) - log_odds(rejected.mean), 0.0)

    def reward(self, side: Side) -> Tensor:
        return self.spec.beta * side.mean


def log_odds(logp: Tensor) -> Tensor:
    """log p / (1 - p) of log p. Where p rounds to one, the odds are those of the number below one."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    small = logp > -math.log(2)  # 1 - p by expm1 where p is near one, by log1p where it is near zero (Maechler 2012)
    rest = torch.where(
        small,
        (-torch.expm1(logp.where(small, logp.new_tensor(-1.0)))).log(),
        torch.log1p(-logp.exp().where(~small, logp.new_tensor(0.5))),
    )
    return logp - rest
