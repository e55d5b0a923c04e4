"""Softmax attention on PyTorch's fused kernels; `model/attention/reference.py` is the same as its equation.

Legend: B rows, H query heads, G key/value heads (each serves H / G query heads), T queries, S keys, D head width, E value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    dropout: float = 0.0,
) -> Tensor:
    """softmax(cap(q k^T scale) + bias, where seen) v -> [B, H, T, E].

    Args:
        bias: [1 or B, H, T, S], added to the scores; None: nothing is added.
        scale: None: 1 / sqrt(D).
        window: tokens that a query sees at most, see `Mask.dense`.
        softcap: scores are bounded to softcap * tanh(score / softcap); no fused kernel does this.
        dropout: share of probabilities dropped.
    """
    if softcap is not None:
        return plain(q_BHTD, k_BGSD, v_BGSE, mask.dense(window), bias, scale, softcap, dropout)
    shared = q_BHTD.shape[1] != k_BGSD.shape[1]
    unlimited = window is None or window >= k_BGSD.shape[2]
    if mask.is_causal and unlimited and bias is None and q_BHTD.shape[2] == k_BGSD.shape[2]:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BGSD, v_BGSE, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=shared
        )
    seen = mask.dense(None if unlimited else window)
    if bias is not None:
        bias = bias.to(q_BHTD.dtype)
        seen = bias if seen is None else torch.where(seen, bias, float("-inf"))
    return F.scaled_dot_product_attention(
        q_BHTD, k_BGSD, v_BGSE, attn_mask=seen, dropout_p=dropout, scale=scale, enable_gqa=shared
    )


def plain(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    seen: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """The same in separate steps, for what no fused kernel computes. Half precision has its scores and softmax in float32."""
    rows, n_heads, queries, width = q_BHTD.shape
    n_kv_heads = k_BGSD.shape[1]
    q_BGRTD = q_BHTD.reshape(rows, n_kv_heads, n_heads // n_kv_heads, queries, width)
    factor = width**-0.5 if scale is None else scale
    scores = (q_BGRTD * factor) @ k_BGSD[:, :, None].transpose(-1, -2)
    scores_BHTS = scores.flatten(1, 2).to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores_BHTS = softcap * (scores_BHTS / softcap).tanh()
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    if seen is not None:
        scores_BHTS = scores_BHTS.masked_fill(~seen, torch.finfo(scores_BHTS.dtype).min)
    shares_BHTS = scores_BHTS.softmax(-1).to(v_BGSE.dtype)
    if seen is not None:
        shares_BHTS = shares_BHTS.masked_fill(~seen, 0.0)  # of a query that sees nothing; as the fused kernels do
    shares_BHTS = F.dropout(shares_BHTS, dropout, training=dropout > 0)
    shares_BGRTS = shares_BHTS.reshape(rows, n_kv_heads, n_heads // n_kv_heads, queries, k_BGSD.shape[2])
    y_BGRTE: Tensor = shares_BGRTS @ v_BGSE[:, :, None]
    return y_BGRTE.flatten(1, 2)
