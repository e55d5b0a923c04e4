"""AdamW (Loshchilov and Hutter 2019, algorithm 2) in PyTorch's fused implementation: one pass over the weights a step.

Fused also means that a step with non-finite gradients can be left out on a GPU without asking the GPU first: the kernel
takes a `found_inf` flag, see `parallel/strategy.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import AdamW

from llmfactory.optim.spec import Adamw


def adamw(spec: Adamw, groups: Iterable[dict[str, Any]]) -> AdamW:
    """The optimizer over `groups`, each with its own weight decay."""
    betas = spec.betas[0], spec.betas[1]
    return AdamW(groups, lr=spec.lr, betas=betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)
