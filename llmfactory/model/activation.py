"""The functions behind the names of `spec.Activation`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.model.ffn.spec import Activation


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021)."""
    return F.relu(x).square()


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.relu: F.relu,
    Activation.gelu: F.gelu,
    Activation.gelu_tanh: partial(F.gelu, approximate="tanh"),
    Activation.silu: F.silu,
    Activation.relu2: squared_relu,
    Activation.tanh: torch.tanh,
    Activation.quick_gelu: quick_gelu,
}
