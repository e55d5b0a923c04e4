"""Linear attention (Katharopoulos et al. 2020, equations 8 to 12): a kernel phi(q) phi(k)^T, phi(x) = elu(x) + 1, for the softmax.

    S_t = S_{t-1} + phi(k_t) v_t^T;  z_t = z_{t-1} + phi(k_t);  y_t = phi(q_t) S_t / (phi(q_t) z_t + eps)

Training takes chunks of tokens: within a chunk the product of queries and keys under a triangular mask, from before the chunk
the state; the sums are the same. Both are float32 at least. A state belongs to one document: tokens of another see nothing of
it, and it starts anew with theirs. Legend: H heads, C tokens of a chunk, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Layout, Parameter
from llmfactory.model.frame import Site
from llmfactory.model.mixer.documents import Documents, documents
from llmfactory.model.mixer.spec import LinearAttention
from llmfactory.model.part import Part, declare_linear

CHUNK = 64
"""Tokens of a chunk: about the head width, where the products within and across chunks cost the same."""


class KernelAttention(Part):
    """[B, T, dim] -> [B, T, dim]."""

    def __init__(self, spec: LinearAttention, site: Site) -> None:
        super().__init__()
        dim = site.frame.dim
        self.slot, self.eps = site.slot, spec.eps
        self.std, self.out_std = site.frame.std, site.frame.out_std
        self.head_dim = dim // spec.n_heads
        self.q = nn.Linear(dim, dim, bias=spec.bias)
        self.k = nn.Linear(dim, dim, bias=spec.bias)
        self.v = nn.Linear(dim, dim, bias=spec.bias)
        self.o = nn.Linear(dim, dim, bias=spec.bias)

    def declare(self) -> dict[str, Parameter]:
        return {
            **declare_linear("q", self.q, self.std, Layout.column, unit=self.head_dim),
            **declare_linear("k", self.k, self.std, Layout.column, unit=self.head_dim),
            **declare_linear("v", self.v, self.std, Layout.column, unit=self.head_dim),
            **declare_linear("o", self.o, self.out_std, Layout.row),
        }

    def visited(self) -> float:
        return super().visited() + 2 * self.q.weight.shape[0] * self.head_dim  # the state is written once and read once

    def forward(self, x_BTM: Tensor, context: Context) -> Tensor:
        before = None if context.state is None else context.state.read(self.slot)
        found = documents(x_BTM, context, None if before is None else before[-1])
        wide = torch.promote_types(x_BTM.dtype, torch.float32)
        q_BHTD, k_BHTD, v_BHTD = (self._heads(linear(x_BTM)).to(wide) for linear in (self.q, self.k, self.v))
        with torch.autocast(x_BTM.device.type, enabled=False):
            q_BHTD, k_BHTD = F.elu(q_BHTD) + 1, F.elu(k_BHTD) + 1
            state = None if before is None else (before[0], before[1])
            y_BHTD, state = attend(q_BHTD, k_BHTD, v_BHTD, found, self.eps, state)
        if context.state is not None:
            context.state.write(self.slot, (*state, found.last_B))
        return self.o(y_BHTD.transpose(1, 2).flatten(2).to(x_BTM.dtype))  # type: ignore[no-any-return]

    def _heads(self, x_BTM: Tensor) -> Tensor:
        return x_BTM.view(*x_BTM.shape[:-1], -1, self.head_dim).transpose(1, 2)


def attend(
    q_BHTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    found: Documents,
    eps: float,
    state: tuple[Tensor, Tensor] | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """y [B, H, T, D] and the state (S [B, H, D, D], z [B, H, D]) after the last token; q and k are positive features.

    `chunk` changes speed and memory, not the result.
    """
    B, H, _, D = q_BHTD.shape
    S_BHDD, z_BHD = (k_BHTD.new_zeros(B, H, D, D), k_BHTD.new_zeros(B, H, D)) if state is None else state
    number_BT = found.starts_BT.cumsum(1)  # of each token's document; 0 is that of the state
    k_BHTD = k_BHTD * found.real_BT[:, None, :, None]
    held_B1 = torch.zeros_like(number_BT[:, :1])  # whose state S is
    outputs = []
    for q, k, v, number_BC in zip(
        *(torch.split(x, chunk, 2) for x in (q_BHTD, k_BHTD, v_BHTD)), torch.split(number_BT, chunk, 1), strict=True
    ):
        same_BCC = number_BC[:, :, None] == number_BC[:, None, :]
        scores_BHCC = (q @ k.transpose(-1, -2)) * same_BCC.tril()[:, None]
        own_BC = number_BC == held_B1
        from_state = q * own_BC[:, None, :, None]
        above = scores_BHCC @ v + from_state @ S_BHDD
        below = scores_BHCC.sum(-1) + (from_state @ z_BHD[..., None])[..., 0]
        outputs.append(above / (below + eps)[..., None])
        last_B1 = number_BC[:, -1:]
        stays_B = (last_B1 == held_B1)[:, 0, None, None]
        k_last = k * (number_BC == last_B1)[:, None, :, None]
        S_BHDD = S_BHDD * stays_B[..., None] + k_last.transpose(-1, -2) @ v
        z_BHD = z_BHD * stays_B + k_last.sum(2)
        held_B1 = last_B1
    return torch.cat(outputs, 2), (S_BHDD, z_BHD)
