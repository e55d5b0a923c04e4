"""Selective state space (Mamba; Gu and Dao 2023, section 3 and algorithm 2).

    u, z = x W_u, x W_z;  u = silu(conv(u));  r, B, C = u W_s;  delta = softplus(r W_d + b_d)
    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t h_t + D u_t;  out = (y silu(z)) W_o,    A = -exp(log_rate)

The convolution sees the tokens of its own document only; at a document's first token the state before it counts nothing;
padding has delta 0. Steps, rates and states are float32 at least. Legend: D inner width, N state numbers a channel, K tokens
that the convolution sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Constant, Layout, Parameter, Uniform
from llmfactory.kernel.linear import matrix_of
from llmfactory.kernel.selective_scan import selective_scan
from llmfactory.model.frame import Site
from llmfactory.model.mixer.documents import Documents, Line, documents
from llmfactory.model.mixer.spec import Mamba
from llmfactory.model.part import Part, declare_linear


@dataclass(frozen=True, slots=True)
class LogOfPlace:
    """log(1), log(2), ..., log(N) in each row: rates -1 to -N (Gu et al. 2022, "S4D-Real")."""

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        tensor.copy_(torch.arange(1, tensor.shape[-1] + 1, dtype=torch.float64).log().expand_as(tensor))

    def __str__(self) -> str:
        return "log of 1 to N"


@dataclass(frozen=True, slots=True)
class StepBias:
    """Biases whose softplus is spread evenly, on a logarithmic scale, over [low, high], and at least `floor`."""

    low: float
    high: float
    floor: float

    def fill(self, tensor: Tensor, generator: Generator) -> None:
        tensor.uniform_(math.log(self.low), math.log(self.high), generator=generator)
        step = tensor.exp().clamp_min(self.floor)
        tensor.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def __str__(self) -> str:
        return f"steps of {self.low:g} to {self.high:g}"


class DocumentConvolution(Part):
    """Each channel's own convolution over the last K tokens of its document (depthwise, causal): [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, size))
        """[D, K]; the last column is the token's own."""
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def declare(self) -> dict[str, Parameter]:
        declared = {"weight": Parameter(Uniform(self.weight.shape[1] ** -0.5), Layout.column)}
        if self.bias is not None:
            declared["bias"] = Parameter(Constant(0.0), Layout.column, decay=False)
        return declared

    def forward(
        self, u_BTD: Tensor, number_BT: Tensor, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Also what the next call takes as `before`: the last K - 1 tokens that are no padding, [B, K - 1, D], and their numbers.

        `number_BT`: of each token's document, 0 for the one that the call before was in, -1 for padding.
        """
        past = self.weight.shape[1] - 1
        line = Line(number_BT, None if before is None else before[1], past)
        x_BSD = line.join(None if before is None else before[0], u_BTD)
        y_BSD = x_BSD * self.weight[:, -1]
        for back in range(1, past + 1):
            seen_BSD = x_BSD[:, :-back] * line.follows(back)[..., None]
            y_BSD = y_BSD + F.pad(seen_BSD * self.weight[:, past - back], (0, 0, back, 0))
        y_BTD = line.new(y_BSD)
        return y_BTD if self.bias is None else y_BTD + self.bias, (x_BSD[:, u_BTD.shape[1] :], line.left())


class SelectiveStateSpace(Part):
    """[B, T, dim] -> [B, T, dim]."""

    reads = ("step",)

    def __init__(self, spec: Mamba, site: Site) -> None:
        super().__init__()
        frame, dim = site.frame, site.frame.dim
        inner, rank = spec.expand * dim, spec.rank_at(dim)
        self.slot, self.std, self.out_std = site.slot, frame.std, frame.out_std
        self.steps = StepBias(spec.step_min, spec.step_max, spec.step_floor)
        self.rank, self.n_state = rank, spec.state
        self.up = nn.Linear(dim, inner, bias=spec.bias)
        self.gate = nn.Linear(dim, inner, bias=spec.bias)
        self.conv = DocumentConvolution(inner, spec.conv, spec.conv_bias)
        self.select = nn.Linear(inner, rank + 2 * spec.state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_rate = nn.Parameter(torch.zeros(inner, spec.state))
        self.skip = nn.Parameter(torch.ones(inner))
        self.down = nn.Linear(inner, dim, bias=spec.bias)

    def declare(self) -> dict[str, Parameter]:
        return {
            **declare_linear("up", self.up, self.std, Layout.column),
            **declare_linear("gate", self.gate, self.std, Layout.column),
            **declare_linear("select", self.select, self.std, Layout.row),
            "step.weight": Parameter(Uniform(self.rank**-0.5), Layout.column),
            "step.bias": Parameter(self.steps, Layout.column, decay=False),
            "log_rate": Parameter(LogOfPlace(), Layout.column, decay=False),
            "skip": Parameter(Constant(1.0), Layout.column, decay=False),
            **declare_linear("down", self.down, self.out_std, Layout.row),
        }

    def visited(self) -> float:
        return super().visited() + self.log_rate.numel()  # each state number is written once and read once

    def forward(self, x_BTM: Tensor, context: Context) -> Tensor:
        before = None if context.state is None else context.state.read(self.slot)
        found = documents(x_BTM, context, None if before is None else before[-1])
        number_BT = found.starts_BT.cumsum(1).where(found.real_BT, -1)
        u_BTD, left = self.conv(self.up(x_BTM), number_BT, None if before is None else (before[1], before[2]))
        y_BTD, h_BDN = self._scan(F.silu(u_BTD), found, None if before is None else before[0])
        if context.state is not None:
            context.state.write(self.slot, (h_BDN, *left, found.last_B))
        return self.down(y_BTD.to(x_BTM.dtype) * F.silu(self.gate(x_BTM)))  # type: ignore[no-any-return]

    def _scan(self, u_BTD: Tensor, found: Documents, h_BDN: Tensor | None) -> tuple[Tensor, Tensor]:
        rank_BTR, b_BTN, c_BTN = self.select(u_BTD).split([self.rank, self.n_state, self.n_state], -1)
        wide = torch.promote_types(u_BTD.dtype, torch.float32)
        with torch.autocast(u_BTD.device.type, enabled=False):
            u_BTD, weight, bias = u_BTD.to(wide), matrix_of(self.step).to(wide), self.step.bias.to(wide)
            delta_BTD = F.softplus(F.linear(rank_BTR.to(wide), weight, bias)) * found.real_BT[..., None]
            y_BTD, h_BDN = selective_scan(
                u_BTD, delta_BTD, -self.log_rate.to(wide).exp(), b_BTN.to(wide), c_BTN.to(wide), ~found.starts_BT, h_BDN
            )
            return y_BTD + self.skip.to(wide) * u_BTD, h_BDN
