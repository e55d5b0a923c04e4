"""Cross-entropy of a linear head, without ever holding all logits.

The logits [N, V] of a large vocabulary are the largest tensor of a training step. Their loss needs only one row at a
time, so rows are taken in chunks: logits of a chunk, its loss, and at once the gradients with respect to the chunk's hidden
vectors and to the head, which backward then merely scales (Hsu et al. 2024, Liger Kernel, section 3.2). The gradient of a
row's smoothed cross-entropy with respect to its logits z is softmax(z) - (1 - e) onehot(label) - e / V. With a z-loss, which adds
a n^2 of the normalizer n = log sum exp z (Chowdhery et al. 2022, section 5), softmax(z) counts 1 + 2 a n times. Where logits are
capped, z = c tanh(y / c) (Gemma 2), all of it is multiplied by dz/dy = 1 - tanh(y / c)^2.

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
from llmfactory.kernel.product import product_in_graph

CPU_ROWS = 256
"""Rows of a chunk on the CPU: its logits stay in the cache for the usual vocabularies."""
GPU_ELEMENTS = 2**27
"""Logits of a chunk on a GPU: enough rows to fill it, 512 MiB in float32."""
COLUMNS = 8192
"""Of the head's gradient, how many are made at once."""


def reference(
    hidden: Tensor,
    weight_VD: Tensor,
    labels: Tensor,
    *,
    bias_V: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z: float = 0.0,
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
    if z:
        loss_N = loss_N + z * logits_NV.logsumexp(-1).square()
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
    z: float = 0.0,
    chunk_rows: int | None = None,
    kernel: Kernel = Kernel.torch,
) -> Tensor:
    """Sum over tokens of weight x smoothed cross-entropy of `labels` under softmax(logits), logits = hidden @ weight.T + bias.

    `hidden` [..., D], `labels` [...] (`IGNORE` where there is no target), `weights` [...] or None for all ones. With
    `softcap` c, logits y become c tanh(y / c). `z`: weight of the z-loss, added to each token's. `kernel`: who makes losses and
    gradients of a chunk of logits. A scalar in float32 or better. Differentiable once, with respect to hidden, weight and bias.
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
        z,
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


def chunk_logits(
    h_CD: Tensor, w_VD: Tensor, bias_V: Tensor | None, softcap: float | None, exact: torch.dtype, *, slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits of a chunk [C, V], in `exact` where a bias or a cap needs it, else in the product's format; with `slope`, where they are
    capped, the derivative of the cap."""
    logits_CV = product_in_graph(h_CD, w_VD)
    if bias_V is not None:
        logits_CV = logits_CV.to(exact).add_(bias_V.to(exact))
    if softcap is None:
        return logits_CV, None
    tanh_CV = logits_CV.to(exact).div_(softcap).tanh_()
    slope_CV = tanh_CV.square().neg_().add_(1) if slope else None
    return tanh_CV.mul_(softcap), slope_CV


def add_product_(total_DV: Tensor, x_CD: Tensor, y_CV: Tensor) -> None:
    """total += x.T @ y, by columns, so that the product never stands beside the total as a whole.

    The gradient of a head is added up turned over: oneDNN wants the first factor row by row, and turning x over moves D numbers a
    token where turning y over would move V.
    """
    x_DC = x_CD.t().contiguous()
    columns = total_DV.shape[1] if torch.compiler.is_compiling() else COLUMNS  # a compiler would copy the total for each
    for start in range(0, total_DV.shape[1], columns):
        cut = slice(start, start + columns)
        total_DV[:, cut] += product_in_graph(x_DC, y_CV[:, cut].t())


def _losses(
    logits_CV: Tensor, target_C1: Tensor, smoothing: float, z: float, exact: torch.dtype, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Of each row the loss [C, 1], and its gradient with respect to the logits [C, V] if that is `wanted`."""
    logp_CV = torch.log_softmax(logits_CV, -1, dtype=exact)
    loss_C1 = logp_CV.gather(-1, target_C1).mul_(smoothing - 1)
    if smoothing:
        loss_C1 -= smoothing * logp_CV.mean(-1, keepdim=True)
    if z:  # the largest logit and its log-probability are near each other, whatever the others are
        normalizer_C1 = logits_CV.amax(-1, keepdim=True).to(exact) - logp_CV.amax(-1, keepdim=True)
        loss_C1 += z * normalizer_C1.square()
    if not wanted:
        return loss_C1, None
    grad_CV = logp_CV.exp_()
    if z:
        grad_CV *= 1 + 2 * z * normalizer_C1
    if smoothing:
        grad_CV -= smoothing / grad_CV.shape[1]
    return loss_C1, grad_CV.scatter_add_(-1, target_C1, torch.full_like(loss_C1, smoothing - 1))


def _losses_in_triton(
    logits_CV: Tensor, target_C1: Tensor, smoothing: float, softcap: float | None, z: float, exact: torch.dtype, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The same of logits that are not capped yet, by one kernel, the gradient where they stood."""
    from llmfactory.kernel.tile.cross_entropy import losses_

    loss_C = losses_(logits_CV, target_C1[:, 0], smoothing, softcap, z, wanted)
    return loss_C[:, None].to(exact), logits_CV if wanted else None


def _chunk(
    h_CD: Tensor,
    w_VD: Tensor,
    bias_V: Tensor | None,
    target_C1: Tensor,
    smoothing: float,
    softcap: float | None,
    z: float,
    exact: torch.dtype,
    wanted: bool,
    kernel: Kernel,
) -> tuple[Tensor, Tensor | None]:
    """From hidden vectors to losses [C, 1] and gradients with respect to what is capped [C, V]; logits are gone then."""
    if kernel is Kernel.triton:
        logits_CV, _ = chunk_logits(h_CD, w_VD, bias_V, None, exact, slope=False)
        return _losses_in_triton(logits_CV, target_C1, smoothing, softcap, z, exact, wanted)
    logits_CV, slope_CV = chunk_logits(h_CD, w_VD, bias_V, softcap, exact, slope=wanted)
    loss_C1, grad_CV = _losses(logits_CV, target_C1, smoothing, z, exact, wanted)
    return loss_C1, grad_CV if grad_CV is None or slope_CV is None else grad_CV.mul_(slope_CV)


def turned_over(total_DV: Tensor, dtype: torch.dtype) -> Tensor:
    """[D, V] -> [V, D], row by row in memory."""
    return total_DV.new_empty(total_DV.shape[::-1], dtype=dtype).copy_(total_DV.t())


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
        z: float,
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
        grad_weight = w_VD.new_zeros(w_VD.shape[::-1], dtype=exact) if need_weight else None  # [D, V]
        grad_bias = torch.zeros_like(bias_V, dtype=exact) if need_bias and bias_V is not None else None
        wanted = need_hidden or need_weight or grad_bias is not None
        with torch.autocast(h_ND.device.type, enabled=False):
            for start in range(0, h_ND.shape[0], rows):
                cut = slice(start, start + rows)
                h_CD, scale_C1, target_C1 = h_ND[cut], scale_N[cut, None], target_N[cut, None]
                loss_C1, grad_CV = _chunk(h_CD, w_VD, bias_V, target_C1, smoothing, softcap, z, exact, wanted, kernel)
                loss += (loss_C1 * scale_C1).sum()
                if grad_CV is None:
                    continue
                low_CV = grad_CV.to(dtype)
                # The weight of a token scales D numbers here instead of V there.
                if grad_hidden is not None:
                    grad_hidden[cut] = product_in_graph(low_CV, w_VD.t()) * scale_C1.to(dtype)
                if grad_weight is not None:
                    add_product_(grad_weight, h_CD * scale_C1.to(dtype), low_CV)
                if grad_bias is not None:
                    grad_bias += (grad_CV.to(exact).t() @ scale_C1)[:, 0]
                del grad_CV, low_CV  # before the next chunk is made
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight_DV, grad_bias = ctx.saved_tensors
        hidden_as, weight_as, bias_as = ctx.dtypes
        return (
            None if grad_hidden is None else grad_hidden.to(hidden_as) * grad_loss,
            None if grad_weight_DV is None else turned_over(grad_weight_DV, weight_as).mul_(grad_loss),
            None if grad_bias is None else grad_bias.to(bias_as) * grad_loss,
            *(None,) * 8,
        )
