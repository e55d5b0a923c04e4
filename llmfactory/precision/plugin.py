"""What a training step needs to know about number formats, as one Lightning plugin.

Weights are stored in `weights`, matrix products run in `products` under autocast if that is given, gradients are added up and summed
over processes in `gradients`. Lightning's own plugins are not used, because on the CPU they turn float16 into bfloat16 without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from llmfactory.precision.loss_scale import LossScale


class MeshPrecision(Precision):
    """Number formats of a step: `weights` for what is stored, `products` for matrix products (None: the same), `gradients` for what is
    added up of them (None: the weights'). `change`: what else becomes of a model."""

    precision = "32-true"

    def __init__(
        self,
        device_type: str = "cpu",
        *,
        weights: torch.dtype = torch.float32,
        products: torch.dtype | None = None,
        gradients: torch.dtype | None = None,
        loss_scale: LossScale | None = None,
        change: Callable[[nn.Module], None] = lambda model: None,
    ) -> None:
        self.device_type, self.weights, self.products, self.loss_scale = device_type, weights, products, loss_scale
        self.gradients, self.change = gradients, change

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Bring all floating-point weights into the stored format. Buffers are tables to be looked up: they are never narrowed."""
        if self.weights.itemsize < torch.float32.itemsize:
            module._apply(lambda x: x.to(self.weights) if isinstance(x, nn.Parameter) and x.is_floating_point() else x)  # type: ignore[no-untyped-call]
        else:
            module.to(self.weights)
        self.change(module)
        return module

    def forward_context(self) -> AbstractContextManager[Any]:
        """Around the forward pass of one micro-batch."""
        if self.products is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.products)

    def scaled(self, loss: Tensor) -> Tensor:
        """What to back-propagate: the loss, times the loss scale if there is one."""
        return loss if self.loss_scale is None else loss * self.loss_scale.value
