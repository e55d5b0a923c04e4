"""Adam (Kingma and Ba 2015, algorithm 1) in PyTorch's fused implementation, for what was published with it (GPT-3, BERT's first runs)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Adam as TorchAdam

from llmfactory.optim.spec import Adam


def adam(spec: Adam, groups: Iterable[dict[str, Any]]) -> TorchAdam:
    """The optimizer over `groups`, each with its own weight decay."""
    betas = spec.betas[0], spec.betas[1]
    return TorchAdam(groups, lr=spec.lr, betas=betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)
