"""Mixture of experts without dropped tokens (Shazeer et al. 2017; Jiang et al. 2024, section 2.1):

    y = scale * sum over the k best experts i of g_i(x) expert_i(x)  [+ shared(x)]

with g the router's scores, softmax or sigmoid, divided by their sum over the chosen k where `normalize` is on: a softmax over
the chosen ones alone, as Mixtral has it, is the same number. A shared part serves every token besides (Dai et al. 2024).
"""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.ffn.router import Router
from llmfactory.model.ffn.spec import Glu, Mlp, Moe, Score
from llmfactory.model.frame import Site
from llmfactory.model.part import Part, declare_linear


class MixtureOfExperts(Part):
    """[B, T, D] -> [B, T, D]."""

    adds_up = True

    def __init__(self, spec: Moe, site: Site) -> None:
        super().__init__()
        self.k, self.score, self.normalize, self.scale = spec.k, spec.score, spec.normalize, spec.scale
        self.std = site.frame.std
        self.router = Router(spec, site)
        self.experts = Experts(spec, site, spec.k)
        self.shared = shared_part(spec, site) if spec.shared_hidden else None
        self.shared_gate = nn.Linear(site.frame.dim, 1, bias=False) if spec.shared_gate else None

    def declare(self) -> dict[str, Parameter]:
        return {} if self.shared_gate is None else declare_linear("shared_gate", self.shared_gate, self.std, Layout.replicated)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        logits_BTE = self.router(x_BTD)
        scores_BTE = logits_BTE.softmax(-1) if self.score is Score.softmax else logits_BTE.sigmoid()
        weights_BTk, experts_BTk = scores_BTE.topk(self.k)
        shares_BTE = scores_BTE if self.score is Score.softmax else scores_BTE / scores_BTE.sum(-1, keepdim=True)
        self.router.leave_losses(logits_BTE, shares_BTE, experts_BTk, context)
        if self.normalize:
            weights_BTk = weights_BTk / weights_BTk.sum(-1, keepdim=True)
        y_NkD = self.experts(x_BTD.flatten(0, 1), experts_BTk.flatten(0, 1)).unflatten(0, (-1, self.k))
        weights_N1k = (self.scale * weights_BTk).flatten(0, 1)[:, None].to(y_NkD.dtype)
        y_BTD = (weights_N1k @ y_NkD)[:, 0].view_as(x_BTD)
        if self.shared is None:
            return y_BTD  # type: ignore[no-any-return]
        shared_BTD = self.shared(x_BTD, context)
        if self.shared_gate is not None:
            shared_BTD = self.shared_gate(x_BTD).sigmoid() * shared_BTD
        return y_BTD + shared_BTD  # type: ignore[no-any-return]


def shared_part(spec: Moe, site: Site) -> Part:
    """A feed-forward part of the experts' kind."""
    kind = Glu if spec.gated else Mlp
    return kind(hidden=spec.shared_hidden, activation=spec.activation, bias=False).build(site)
