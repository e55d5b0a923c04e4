"""Cross-entropy of logits that stand in memory already, by whichever kernels a job has chosen.

With z = c tanh(x / c) of logits x where they are capped (Gemma 2), n = log sum exp z, e the label smoothing (Szegedy et al. 2016,
section 7) and a the weight of the z-loss (Chowdhery et al. 2022, section 5):

    loss = n - (1 - e) z_label - e mean(z) + a n^2
    dloss / dx = (softmax(z) (1 + 2 a n) - (1 - e) onehot(label) - e / V) (1 - tanh^2(x / c))

In Triton the gradient is written where the logits stood, in the forward pass: no second tensor of their size exists.
`linear_cross_entropy.py` never has all logits at all; this is what it does with a chunk of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmfactory.core.batch import IGNORE
from llmfactory.core.kernel import Kernel
from llmfactory.kernel.choice import way


def plain(
    logits_NV: Tensor, labels_N: Tensor, *, label_smoothing: float = 0.0, softcap: float | None = None, z: float = 0.0
) -> Tensor:
    """The same by PyTorch's operations."""
    x_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if softcap is not None:
        x_NV = softcap * (x_NV / softcap).tanh()
    kept_N = labels_N != IGNORE
    normalizer_N = x_NV.logsumexp(-1)
    own_N = x_NV.gather(-1, labels_N.where(kept_N, 0)[:, None])[:, 0]
    loss_N = normalizer_N - (1 - label_smoothing) * own_N - label_smoothing * x_NV.mean(-1) + z * normalizer_N.square()
    return loss_N.where(kept_N, 0.0)


def cross_entropy(
    logits_NV: Tensor,
    labels_N: Tensor,
    *,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    z: float = 0.0,
    kernel: Kernel = Kernel.torch,
) -> Tensor:
    """The loss of each row, [N], 0 where the label is `IGNORE`. In Triton, logits that want a gradient are given up to it."""
    if way(kernel, logits_NV) is Kernel.triton:
        return _CrossEntropy.apply(logits_NV, labels_N, label_smoothing, softcap, z)  # type: ignore[no-any-return,no-untyped-call]
    return plain(logits_NV, labels_N, label_smoothing=label_smoothing, softcap=softcap, z=z)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, labels_N: Tensor, smoothing: float, softcap: float | None, z: float) -> Tensor:
        from llmfactory.kernel.tile.cross_entropy import losses_

        kept_N = labels_N != IGNORE
        room_NV = logits_NV if logits_NV.stride(-1) == 1 else logits_NV.contiguous()
        loss_N = losses_(room_NV, labels_N.where(kept_N, 0), smoothing, softcap, z, ctx.needs_input_grad[0])
        if ctx.needs_input_grad[0]:
            torch.autograd.graph.increment_version(room_NV)  # so that whoever kept the logits for a gradient is told
        ctx.slopes_NV = room_NV.detach()
        ctx.save_for_backward(kept_N)
        return loss_N.where(kept_N, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None, None, None]:
        (kept_N,) = ctx.saved_tensors
        slopes_NV = ctx.slopes_NV
        return slopes_NV.mul_(grad_N.where(kept_N, 0.0).to(slopes_NV.dtype)[:, None]), None, None, None, None
