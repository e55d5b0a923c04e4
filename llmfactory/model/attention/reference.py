"""Attention as its equation (Vaswani et al. 2017, equation 1), for tests to compare the fast one with."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context


def attend(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, context: Context) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias, where seen) v -> [B, H, T, D]; each of the G key/value heads serves H / G query heads."""
    n_heads, n_kv_heads = q_BHTD.shape[1], k_BGSD.shape[1]
    heads = []
    for head in range(n_heads):
        group = head * n_kv_heads // n_heads
        scores_BTS = q_BHTD[:, head] @ k_BGSD[:, group].transpose(-1, -2) / q_BHTD.shape[-1] ** 0.5
        if context.bias is not None:
            scores_BTS = scores_BTS + context.bias[:, head]
        seen = context.mask.dense()
        if seen is not None:
            scores_BTS = scores_BTS.masked_fill(~seen[:, 0], float("-inf"))
        heads.append(scores_BTS.softmax(-1) @ v_BGSD[:, group])
    return torch.stack(heads, 1)
