"""AdamW (Loshchilov and Hutter 2019, algorithm 2) in PyTorch's fused implementation: one pass over the weights a step.

Fused also means that a step with non-finite gradients can be left out on a GPU without asking the GPU first: the kernel
takes a `found_inf` flag, see `parallel/strategy.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.adamw import adamw as fused_step

from llmfactory.optim.spec import Adamw, MomentsSpec
from llmfactory.parallel.weights import local


def adamw(spec: Adamw, groups: Iterable[dict[str, Any]]) -> AdamW:
    """The optimizer over `groups`, each with its own weight decay."""
    betas = spec.betas[0], spec.betas[1]
    return AdamW(groups, lr=spec.lr, betas=betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)


def adamw_step(
    states: MutableMapping[Tensor, dict[str, Any]], weights: list[Tensor], spec: MomentsSpec, *, lr: float, decay: float
) -> None:
    """The same step of some weights, which have gradients, for optimizers that treat only others in their own way."""
    for weight in weights:
        if not states[weight]:
            step = torch.zeros((), device=local(weight).device)
            states[weight].update(step=step, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
    found = [states[weight] for weight in weights]
    fused_step(
        weights,
        [weight.grad for weight in weights if weight.grad is not None],
        [state["mean"] for state in found],
        [state["square"] for state in found],
        [],
        [state["step"] for state in found],
        fused=True,
        amsgrad=False,
        beta1=spec.betas[0],
        beta2=spec.betas[1],
        lr=lr,
        weight_decay=decay,
        eps=spec.eps,
        maximize=False,
    )
