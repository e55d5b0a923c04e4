"""Who goes to which expert: a linear map from tokens to logits, in float32 whatever the rest is in (Fedus et al. 2021, section 2.4).

A router also leaves the losses that keep it sound in `Context.record`. With f_i the number of visits to expert i for each token,
p_i its mean share of the scores and E experts:

    balance = E sum_i f_i p_i        (Fedus et al. 2021, equation 4; k at best, where each token visits k)
    z = mean over tokens of logsumexp(logits)^2        (Zoph et al. 2022, equation 5)

Both are means over tokens; what is recorded is that times the number of tokens, since the step divides by it. Taken over each row,
the balance is a sum over rows, the same for every cut of a batch. Padding takes no part in either. Of a row that is cut along its
length, visits, shares and tokens are summed over its pieces; each of n processes then has the row's balance and records an n-th.

Shapes: B rows, T tokens of a row, E experts, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.context import Context, Pieces
from llmfactory.core.sharding import Normal, Parameter
from llmfactory.model.ffn.spec import BalanceOver, MoeSpec
from llmfactory.model.frame import Site
from llmfactory.model.part import Part


class Router(Part):
    """[B, T, D] -> logits [B, T, E], at least float32."""

    def __init__(self, spec: MoeSpec, site: Site) -> None:
        super().__init__()
        self.std, self.jitter = site.frame.std, spec.jitter
        self.balance, self.over, self.z = spec.balance, spec.balance_over, spec.z
        side = f"{site.frame.name}_" if site.frame.name else ""
        self.balance_term, self.z_term = f"{side}balance", f"{side}router_z"
        self.weight = nn.Parameter(torch.empty(spec.n_experts, site.frame.dim))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Normal(self.std), fan_in=1)}

    @property
    def own_terms(self) -> tuple[str, ...]:
        return tuple(name for name, weight in ((self.balance_term, self.balance), (self.z_term, self.z)) if weight)

    def forward(self, x_BTD: Tensor) -> Tensor:
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        x_BTD = x_BTD.to(wide)
        if self.training and self.jitter:
            x_BTD = x_BTD * torch.empty_like(x_BTD).uniform_(1 - self.jitter, 1 + self.jitter)
        with torch.autocast(x_BTD.device.type, enabled=False):
            return F.linear(x_BTD, self.weight.to(wide))

    def leave_losses(self, logits_BTE: Tensor, shares_BTE: Tensor, experts_BTk: Tensor, context: Context) -> None:
        """Record the terms that this router has; `shares` are the scores of a token, summing to one."""
        record = context.record
        if record is None:
            return
        real_BT = torch.ones_like(experts_BTk[..., 0]) if context.segments is None else context.segments > 0
        if self.balance:
            rows = shares_BTE, experts_BTk, real_BT
            if self.over is BalanceOver.batch:
                rows = shares_BTE.flatten(0, 1)[None], experts_BTk.flatten(0, 1)[None], real_BT.flatten()[None]
            record.add(self.balance_term, self.balance * balance(*rows, context.pieces))
        if self.z:
            record.add(self.z_term, self.z * (logits_BTE.logsumexp(-1).square() * real_BT).sum())


def balance(shares_BTE: Tensor, experts_BTk: Tensor, real_BT: Tensor, pieces: Pieces | None = None) -> Tensor:
    """Sum over rows of E sum_i f_i p_i times the row's number of real tokens; of rows that are cut, this process's share of it."""
    n_experts = shares_BTE.shape[-1]
    visits_BTE = torch.zeros_like(shares_BTE).scatter_(-1, experts_BTk, 1.0) * real_BT[..., None]
    visits_BE, shares_BE = visits_BTE.sum(1), (shares_BTE * real_BT[..., None]).sum(1)
    tokens_B1 = real_BT.sum(1, keepdim=True).to(shares_BTE.dtype)
    if pieces is None:
        return _balance(visits_BE, shares_BE, tokens_B1)
    ones_B1 = torch.ones_like(tokens_B1)  # their sum is the number of pieces
    sums = pieces.total(torch.cat((visits_BE, shares_BE, tokens_B1, ones_B1), 1))
    visits_BE, shares_BE, tokens_B1, pieces_B1 = torch.split(sums, [n_experts, n_experts, 1, 1], 1)
    return _balance(visits_BE, shares_BE, tokens_B1) / pieces_B1[0, 0]


def _balance(visits_BE: Tensor, shares_BE: Tensor, tokens_B1: Tensor) -> Tensor:
    return visits_BE.shape[1] * ((visits_BE * shares_BE).sum(-1) / tokens_B1[:, 0].clamp_min(1)).sum()
