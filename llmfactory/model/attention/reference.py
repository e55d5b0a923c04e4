"""Attention as its equation (Vaswani et al. 2017, equation 1), for tests to compare the fast one with."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Mask


def attend(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    mask: Mask,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(cap(q k^T scale) + bias, where seen) v -> [B, H, T, E]; each of the G key/value heads serves H / G query heads."""
    n_heads, n_kv_heads = q_BHTD.shape[1], k_BGSD.shape[1]
    factor = q_BHTD.shape[-1] ** -0.5 if scale is None else scale
    heads = []
    for head in range(n_heads):
        group = head * n_kv_heads // n_heads
        scores_BTS = q_BHTD[:, head] @ k_BGSD[:, group].transpose(-1, -2) * factor
        if softcap is not None:
            scores_BTS = softcap * torch.tanh(scores_BTS / softcap)
        if bias is not None:
            scores_BTS = scores_BTS + bias[:, head]
        seen = mask.dense(window)
        if seen is not None:
            scores_BTS = scores_BTS.masked_fill(~seen[:, 0], float("-inf"))
        heads.append(scores_BTS.softmax(-1) @ v_BGSE[:, group])
    return torch.stack(heads, 1)
