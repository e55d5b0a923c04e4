"""SGD with momentum in the form of Sutskever et al. 2013 as PyTorch states it: v = momentum v + g, w = w - lr v.

Weight decay is added to the gradient (g + decay w), so unlike AdamW's it passes through the momentum. PyTorch's fused
kernel has no rule for distributed tensors; the foreach one has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.distributed.tensor import DTensor
from torch.optim import SGD

from llmfactory.optim.spec import Sgd


def sgd(spec: Sgd, groups: Iterable[dict[str, Any]]) -> SGD:
    """The optimizer over `groups`, each with its own weight decay."""
    groups = list(groups)
    distributed = any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
    return SGD(
        groups,
        lr=spec.lr,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
        fused=not distributed,
        foreach=distributed,
    )
