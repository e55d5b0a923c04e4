"""Attention in tiles, for teaching and for what PyTorch's fused kernels do not compute (Dao 2023).

With scores z = c tanh(q k^T scale / c) (without a cap: q k^T scale) where a query sees a key, and their log-sum-exp n:

    p = exp(z - n),   y = p v
    dv = p^T dy,   dp = dy v^T,   dz = p (dp - sum of dy y),   dq = dz k scale,   dk = dz^T q scale      (with a cap, dz (1 - tanh^2))

Neither z nor p is ever in memory. Causal, documents of packed rows, a window, shared key/value heads; no bias, no dropout.
`model/attention/reference.py` is the plain reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.context import CausalMask, DocumentMask, FullMask, Mask, SegmentMask

Form = tuple[bool, tuple[Tensor, Tensor] | None]
"""Whether a query sees no later key, and the documents of queries and keys, of which it sees its own; None: all are one."""


def form_of(mask: Mask, window: int | None) -> Form | None:
    """What the kernel needs to know of a mask; None: it cannot express it."""
    if type(mask) is FullMask:
        return (False, None) if window is None or mask.length is not None else None
    if type(mask) is CausalMask:
        return True, None
    if isinstance(mask, (DocumentMask, SegmentMask)) and mask.order_BT is None:
        one_row = mask.segments_BS is mask.segments_BT
        causal = isinstance(mask, DocumentMask)
        return (causal, (mask.segments_BT, mask.segments_BS)) if one_row or not (causal or window) else None
    return None


def flash_attention(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSE: Tensor,
    form: Form,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """[B, H, T, E]; a query that sees nothing gives zeros. In autocast's format where autocast is on."""
    device = q_BHTD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q_BHTD.dtype
    q_BHTD, k_BGSD, v_BGSE = (x.to(dtype) for x in (q_BHTD, k_BGSD, v_BGSE))
    scale = q_BHTD.shape[-1] ** -0.5 if scale is None else scale
    return _Flash.apply(q_BHTD, k_BGSD, v_BGSE, form, scale, window, softcap)  # type: ignore[no-any-return,no-untyped-call]


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BHTD: Tensor,
        k_BGSD: Tensor,
        v_BGSE: Tensor,
        form: Form,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        from llmfactory.kernel.tile import attention

        q_BHTD, k_BGSD, v_BGSE = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHTD, k_BGSD, v_BGSE))
        causal, segments = form
        ctx.shapes = attention.Shapes(q_BHTD, k_BGSD, v_BGSE, segments, scale, causal, window, softcap)
        y_BHTE, lse_BHT = attention.forward(q_BHTD, k_BGSD, v_BGSE, ctx.shapes)
        ctx.save_for_backward(q_BHTD, k_BGSD, v_BGSE, y_BHTE, lse_BHT)
        return y_BHTE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BHTE: Tensor) -> tuple[Tensor | None, ...]:
        from llmfactory.kernel.tile import attention

        q_BHTD, k_BGSD, v_BGSE, y_BHTE, lse_BHT = ctx.saved_tensors
        found = attention.backward(dy_BHTE.contiguous(), q_BHTD, k_BGSD, v_BGSE, y_BHTE, lse_BHT, ctx.shapes)
        return (*found, None, None, None, None)
