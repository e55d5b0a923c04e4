"""A step of AdamW over a tensor in one pass over memory (Loshchilov and Hutter 2019, algorithm 2), in Triton:

    m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2
    w = (1 - lr decay) w - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

Read w, g, m, v and write w, m, v: 28 bytes a weight in float32, the least there is. PyTorch's fused step does the same for many
tensors by one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: Tensor, lr: float, betas: tuple[float, float], eps: float,
    decay: float,
) -> None:  # fmt: skip
    """The same by plain operations, in place; `step` is the number of this one, from 1."""
    mean.mul_(betas[0]).add_(grad, alpha=1 - betas[0])
    square.mul_(betas[1]).add_(grad.square(), alpha=1 - betas[1])
    root = (square / (1 - betas[1] ** step)).sqrt()
    weight.mul_(1 - lr * decay).sub_(lr / (1 - betas[0] ** step) * mean / (root + eps))


def adamw_step_(
    weight: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    step: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    found_inf: Tensor | None = None,
) -> None:
    """In place, `step` (on the device, the number of steps before) as well. Where `found_inf` is not 0, nothing changes; nobody waits
    to know."""
    from llmfactory.kernel.tile import adamw

    exact = torch.promote_types(weight.dtype, torch.float32)
    left_out = torch.zeros((), dtype=exact, device=weight.device) if found_inf is None else found_inf.to(exact).reshape(())
    step += (left_out == 0).to(step.dtype)
    number = step.to(torch.float64)
    rate, root = lr / (1 - betas[0] ** number), (1 - betas[1] ** number).sqrt()
    numbers = torch.stack((rate, torch.full_like(rate, 1 - lr * decay), root, left_out.to(rate.dtype))).to(exact)
    if not weight.is_contiguous():
        raise ValueError("weights are updated where they stand: they must be contiguous")
    adamw.step_(weight, grad.contiguous(), mean, square, numbers, *betas, eps)
