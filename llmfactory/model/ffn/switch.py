"""Top-1 routing with a capacity (Fedus et al. 2021, equations 1-3): y = p_i(x) expert_i(x) for the likeliest expert i.

An expert takes the first tokens of a row that choose it, up to its capacity; for those after them y = 0, so that the residual alone
carries them on. The capacity is of each row, not of the whole batch, so that a text's output depends on no other row. Padding takes
none of it. In cached decoding each call counts its own new tokens.

Tokens over the capacity are computed and weighed by zero: all shapes are known before the routing is, so that a GPU need not
wait for the counts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.ffn.router import Router
from llmfactory.model.ffn.spec import Switch
from llmfactory.model.frame import Site
from llmfactory.model.part import Part


class SwitchLayer(Part):
    """[B, T, D] -> [B, T, D]."""

    adds_up = True

    def __init__(self, spec: Switch, site: Site) -> None:
        super().__init__()
        self.factor, self.capacity = spec.capacity_factor, spec.capacity
        self.router = Router(spec, site)
        self.experts = Experts(spec, site, k=1)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        logits_BTE = self.router(x_BTD)
        shares_BTE = logits_BTE.softmax(-1)
        weights_BT1, experts_BT1 = shares_BTE.max(-1, keepdim=True)
        self.router.leave_losses(logits_BTE, shares_BTE, experts_BT1, context)
        weights_BT1 = weights_BT1 * self.within(experts_BT1[..., 0], shares_BTE.shape[-1], context)[..., None]
        y_ND = self.experts(x_BTD.flatten(0, 1), experts_BT1.flatten(0, 1))
        return y_ND.view_as(x_BTD) * weights_BT1.to(y_ND.dtype)  # type: ignore[no-any-return]

    def within(self, experts_BT: Tensor, n_experts: int, context: Context) -> Tensor:
        """Bool [B, T]: the expert that a token chose has room for it."""
        real_BT = torch.ones_like(experts_BT) if context.segments is None else (context.segments > 0).long()
        if context.pieces is not None:  # who comes first is known of whole rows only
            experts_BT, real_BT = context.pieces.whole(torch.stack((experts_BT, real_BT), -1)).unbind(-1)
        chosen_BTE = one_hot(experts_BT, n_experts) * real_BT[..., None]
        tokens_B1 = real_BT.sum(1, keepdim=True)
        place_BT = chosen_BTE.cumsum(1).gather(-1, experts_BT[..., None])[..., 0]
        fits_BT = place_BT <= (math.inf if self.capacity is None else self.capacity)
        if self.factor is not None:
            fits_BT &= place_BT <= (tokens_B1.double() * self.factor / n_experts).ceil()
        return fits_BT if context.pieces is None else context.pieces.own(fits_BT)
