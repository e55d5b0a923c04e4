"""Softmax attention on PyTorch's fused kernels; `model/attention/reference.py` is the same as its equation.

Legend: B rows, H query heads, G key/value heads (each serves H / G query heads), T queries, S keys, D head width, E value width.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.context import CausalMask, CutMask, Documents, FullMask, Mask
from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import way
from llmfactory.kernel.flash import flash_attention, form_of


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
    kernel: Kernel = Kernel.torch,
) -> Tensor:
    """softmax(cap(q k^T scale) + bias, where seen) v -> [B, H, T, E].

    Args:
        bias: [1 or B, H, T, S], added to the scores; None: nothing is added.
        scale: None: 1 / sqrt(D).
        window: tokens that a query sees at most, see `Mask.dense`.
        softcap: scores are bounded to softcap * tanh(score / softcap); no fused kernel of PyTorch does this.
        dropout: share of probabilities dropped.
        kernel: who computes it, where there is no bias and no dropout; elsewhere PyTorch does.
    """
    if isinstance(mask, CutMask):
        return mask.attend(q_BHTD, k_BGSD, v_BGSE, bias, scale=scale, window=window, softcap=softcap, dropout=dropout)
    if way(kernel, q_BHTD, fused_in_torch=softcap is None) is Kernel.triton and bias is None and not dropout:
        form = form_of(mask, window)
        if form is not None:
            return flash_attention(q_BHTD, k_BGSD, v_BGSE, form, scale=scale, window=window, softcap=softcap)
    if softcap is not None:
        return plain(q_BHTD, k_BGSD, v_BGSE, mask.dense(window), bias, scale, softcap, dropout)
    unlimited = window is None or window >= k_BGSD.shape[2]
    if bias is None and not torch.compiler.is_compiling():
        documents = _apart(mask, q_BHTD, k_BGSD, v_BGSE.shape[3], dropout)
        if documents is not None:
            by_piece = _varlen if q_BHTD.is_cuda else _one_by_one
            return by_piece(q_BHTD, k_BGSD, v_BGSE, documents, scale, None if unlimited else window, dropout)
    shared = q_BHTD.shape[1] != k_BGSD.shape[1]
    if mask.is_causal and unlimited and bias is None and q_BHTD.shape[2] == k_BGSD.shape[2]:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BGSD, v_BGSE, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=shared
        )
    if window is not None and mask.is_causal and bias is None and q_BHTD.shape[2] >= 2 * max(window, BLOCK):
        return _in_blocks(q_BHTD, k_BGSD, v_BGSE, scale, window, dropout)
    seen = mask.dense(None if unlimited else window)
    if bias is not None:
        bias = bias.to(q_BHTD.dtype)
        seen = bias if seen is None else torch.where(seen, bias, float("-inf"))
    return F.scaled_dot_product_attention(
        q_BHTD, k_BGSD, v_BGSE, attn_mask=seen, dropout_p=dropout, scale=scale, enable_gqa=shared
    )


BLOCK = 256
"""Fewest queries of a block of a row under a window."""
PIECE = 1 << 20
"""Multiply-adds that the calls for one piece take as long as, forward and backward (measured on CPU: 0.25 ms at 4 a ns)."""


def _apart(mask: Mask, q_BHTD: Tensor, k_BGSD: Tensor, v_width: int, dropout: float) -> Documents | None:
    """The documents of the rows, where attention within each of them is faster than under a mask over the rows."""
    rows, n_heads, length, width = q_BHTD.shape
    if length != k_BGSD.shape[2] or length == 1:
        return None
    if q_BHTD.is_cuda:
        half = q_BHTD.dtype in (torch.float16, torch.bfloat16)
        fits = half and dropout == 0 and width == v_width and width % 8 == 0 and width <= 256 and _has_varlen(q_BHTD.device)
        return mask.documents() if fits else None
    if q_BHTD.device.type != "cpu" or rows * n_heads * length**2 * width < PIECE:
        return None
    documents = mask.documents()
    if documents is None:
        return None
    spared = rows * length**2 - sum(piece**2 for piece in documents.lengths)
    return documents if spared * n_heads * width > PIECE * len(documents.lengths) else None


def _in_blocks(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTE: Tensor, scale: float | None, window: int, dropout: float) -> Tensor:
    """A causal row under a window: blocks of queries over the keys that they reach, so that work grows with T and not T^2."""
    length, step = q_BHTD.shape[2], max(window, BLOCK)
    blocks = []
    for start in range(0, length, step):
        first, end = max(0, start - window + 1), min(start + step, length)
        reached = CausalMask(end - first, q_BHTD.device, queries=end - start)
        keys, values = k_BGTD[:, :, first:end], v_BGTE[:, :, first:end]
        blocks.append(attend(q_BHTD[:, :, start:end], keys, values, reached, scale=scale, window=window, dropout=dropout))
    return torch.cat(blocks, 2)


@functools.cache
def _has_varlen(device: torch.device) -> bool:
    """Whether this PyTorch and this GPU have flash attention for pieces of several lengths."""
    return find_spec("torch.nn.attention.varlen") is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def _one_by_one(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTE: Tensor,
    documents: Documents,
    scale: float | None,
    window: int | None,
    dropout: float,
) -> Tensor:
    """Each document by a call of its own. Cutting all rows at once keeps the backward to one pass over each tensor."""
    cut = [torch.split(x.transpose(1, 2).flatten(0, 1), documents.lengths) for x in (q_BHTD, k_BGTD, v_BGTE)]
    pieces = []
    for document in zip(*cut, strict=True):
        q_1HTD, k_1GTD, v_1GTE = (piece_THD.transpose(0, 1)[None] for piece_THD in document)
        length = q_1HTD.shape[2]
        mask = CausalMask(length) if documents.causal else FullMask(length)
        y_1HTE = attend(q_1HTD, k_1GTD, v_1GTE, mask, scale=scale, window=window, dropout=dropout)
        pieces.append(y_1HTE[0].transpose(0, 1))
    return torch.cat(pieces).unflatten(0, (q_BHTD.shape[0], -1)).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]


def _varlen(
    q_BHTD: Tensor,
    k_BGTD: Tensor,
    v_BGTE: Tensor,
    documents: Documents,
    scale: float | None,
    window: int | None,
    dropout: float,
) -> Tensor:
    """All documents by one call of the flash kernel for pieces of several lengths."""
    from torch.nn.attention.varlen import varlen_attn

    ends_N = torch.tensor([0, *documents.lengths]).cumsum(0).to(q_BHTD.device, torch.int32, non_blocking=True)
    longest = max(documents.lengths)
    reach = -1 if window is None else window - 1
    q_NHD, k_NGD, v_NGE = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTD, k_BGTD, v_BGTE))
    y_NHE = varlen_attn(
        q_NHD,
        k_NGD,
        v_NGE,
        ends_N,
        ends_N,
        longest,
        longest,
        scale=scale,
        window_size=(reach, 0 if documents.causal else reach),
        enable_gqa=q_BHTD.shape[1] != k_BGTD.shape[1],
    )
    assert isinstance(y_NHE, torch.Tensor)
    return y_NHE.unflatten(0, (q_BHTD.shape[0], -1)).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]


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
