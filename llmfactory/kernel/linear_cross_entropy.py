"""Cross-entropy of a linear head, without ever holding all logits.

The logits [N, V] of a large vocabulary are the largest tensor of a training step. Their loss needs only one row at a
time, so rows are taken in chunks: logits of a chunk, its loss, and at once the gradients with respect to the chunk's hidden
vectors and to the head, which backward then merely scales (Hsu et al. 2024, Liger Kernel, section 3.2). The gradient of a
row's smoothed cross-entropy with respect to its logits z is softmax(z) - (1 - e) onehot(label) - e / V. Where logits are
capped, z = c tanh(y / c) (Gemma 2), it is multiplied by dz/dy = 1 - tanh(y / c)^2.

Chunks below 128 rows lose more to re-reading the head's gradient than they win. Products run in autocast's dtype where
autocast is on; softmax, loss and the accumulated gradient of the head are at least float32.

Shapes: N tokens, C of them in a chunk, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import way
from llmfactory.kernel.product import product

CPU_ROWS = 512
"""Rows of a chunk on the CPU: its logits stay in the cache for the usual vocabularies."""
GPU_ELEMENTS = 2**27
"""Logits of a chunk on a GPU: enough rows to fill it, 512 MiB in float32."""


def reference(
    hidden: Tensor,
    weight_VD: Tensor,
    labels: Tensor,
    *,
    bias_V: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """The same number by plain means: sum over tokens of weight x smoothed cross-entropy; ignored labels count nothing."""
    logits_NV = torch.nn.functional.linear(hidden.flatten(0, -2), weight_VD, bias_V)
    logits_NV = logits_NV.to(accumulator(logits_NV.dtype))
    if softcap is not None:
        logits_NV = softcap * (logits_NV / softcap).tanh()
    logp_NV = logits_NV.log_softmax(-1)
    labels_N = labels.flatten()
    kept_N = labels_N != IGNORE
    nll_N = -logp_NV.gather(-1, labels_N.where(kept_N, 0)[:, None])[:, 0]
    loss_N = (1 - label_smoothing) * nll_N - label_smoothing * logp_NV.mean(-1)
    scale_N = kept_N.to(loss_N.dtype) if weights is None else weights.flatten().to(loss_N.dtype) * kept_N
    return (loss_N * scale_N).sum()


def linear_cross_entropy(
    hidden: Tensor,
    weight_VD: Tensor,
    labels: Tensor,
    *,
    bias_V: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    kernel: Kernel = Kernel.torch,
) -> Tensor:
    """Sum over tokens of weight x smoothed cross-entropy of `labels` under softmax(z), z = hidden @ weight.T + bias.

    `hidden` [..., D], `labels` [...] (`IGNORE` where there is no target), `weights` [...] or None for all ones. With
    `softcap` c, z becomes c tanh(z / c). `kernel`: who makes losses and gradients of a chunk of logits. A scalar in float32 or better. Differentiable once, with respect to hidden, weight and bias.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
    else:
        dtype = torch.promote_types(hidden.dtype, weight_VD.dtype)
    rows = chunk_rows or chunk_size(hidden.device.type, weight_VD.shape[0])
    scale = None if weights is None else weights.flatten()
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.flatten(0, -2),
        weight_VD,
        bias_V,
        labels.flatten(),
        scale,
        label_smoothing,
        softcap,
        rows,
        dtype,
        way(kernel, hidden),
    )
    return loss


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums of products in a format are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunk_size(device_type: str, vocab_size: int) -> int:
    """Rows of a chunk."""
    return CPU_ROWS if device_type == "cpu" else max(CPU_ROWS, GPU_ELEMENTS // vocab_size)


def _losses(
    logits_CV: Tensor, target_C1: Tensor, smoothing: float, softcap: float | None, exact: torch.dtype, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Of each row the loss [C, 1], and its gradient with respect to the logits [C, V] if that is `wanted`."""
    tanh_CV = None
    if softcap is not None:
        tanh_CV = (logits_CV.to(exact) / softcap).tanh_()
        logits_CV = softcap * tanh_CV
    logp_CV = torch.log_softmax(logits_CV, -1, dtype=exact)
    loss_C1 = logp_CV.gather(-1, target_C1).mul_(smoothing - 1)
    if smoothing:
        loss_C1 -= smoothing * logp_CV.mean(-1, keepdim=True)
    if not wanted:
        return loss_C1, None
    grad_CV = logp_CV.exp_()
    if smoothing:
        grad_CV -= smoothing / grad_CV.shape[1]
    grad_CV.scatter_add_(-1, target_C1, torch.full_like(loss_C1, smoothing - 1))
    if tanh_CV is not None:
        grad_CV *= tanh_CV.square_().neg_().add_(1)
    return loss_C1, grad_CV


def _losses_in_triton(
    logits_CV: Tensor, target_C1: Tensor, smoothing: float, softcap: float | None, exact: torch.dtype, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The same by one kernel, the gradient where the logits stood."""
    from llmfactory.kernel.tile.cross_entropy import losses_

    loss_C = losses_(logits_CV, target_C1[:, 0], smoothing, softcap, 0.0, wanted)
    return loss_C[:, None].to(exact), logits_CV if wanted else None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        weights_N: Tensor | None,
        smoothing: float,
        softcap: float | None,
        rows: int,
        dtype: torch.dtype,
        kernel: Kernel,
    ) -> Tensor:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        exact = accumulator(dtype)
        kept_N = labels_N != IGNORE
        scale_N = kept_N.to(exact) if weights_N is None else weights_N.to(exact) * kept_N
        target_N = labels_N.where(kept_N, 0)
        h_ND, w_VD = hidden_ND.to(dtype), weight_VD.to(dtype)

        loss = torch.zeros((), dtype=exact, device=h_ND.device)
        grad_hidden = torch.empty_like(h_ND) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=exact) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=exact) if need_bias and bias_V is not None else None
        with torch.autocast(h_ND.device.type, enabled=False):
            for start in range(0, h_ND.shape[0], rows):
                cut = slice(start, start + rows)
                h_CD, scale_C1, target_C1 = h_ND[cut], scale_N[cut, None], target_N[cut, None]
                logits_CV = product(h_CD, w_VD)
                if bias_V is not None:
                    logits_CV = logits_CV.to(exact) + bias_V.to(exact)
                wanted = need_hidden or need_weight or grad_bias is not None
                losses = _losses_in_triton if kernel is Kernel.triton else _losses
                loss_C1, grad_CV = losses(logits_CV, target_C1, smoothing, softcap, exact, wanted)
                loss += (loss_C1 * scale_C1).sum()
                if grad_CV is None:
                    continue
                grad_low_CV = grad_CV.to(dtype)
                # The weight of a token scales D numbers here instead of V there.
                if grad_hidden is not None:
                    grad_hidden[cut] = product(grad_low_CV, w_VD.t()) * scale_C1.to(dtype)
                if grad_weight is not None:
                    scaled_CD = h_CD * scale_C1.to(dtype)
                    grad_weight += product(grad_low_CV.t(), scaled_CD.t())
                if grad_bias is not None:
                    grad_bias += (grad_CV.to(exact).t() @ scale_C1)[:, 0]
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if grad is None else grad.to(dtype) * grad_loss
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None, None, None, None)
