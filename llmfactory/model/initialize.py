"""Fill a model's parameters from a seed and their names.

Every parameter is drawn whole, in float32, on the CPU, from a generator of its own that is seeded by its name. So the
first weights depend on nothing else: not on neighbours, on the order of construction, on the device, on the dtype or on
how the parameter is cut (drawing shards in place gives every rank the same numbers).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import name_seed
from llmfactory.model.declarations import declarations


def initialize(model: nn.Module, seed: int, place: Callable[[nn.Parameter, Tensor], object] | None = None) -> None:
    """Fill every parameter; `place(parameter, full)` stores the whole float32 tensor (None: copy it into the parameter).

    One full tensor exists at a time.
    """
    with torch.no_grad():
        for name, declared in declarations(model).items():
            parameter = model.get_parameter(name)
            full = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            declared.start.fill(full, torch.Generator().manual_seed(name_seed(seed, name)))
            (place or _copy)(parameter, full)


def _copy(parameter: nn.Parameter, full: Tensor) -> None:
    if parameter.is_meta:
        raise RuntimeError("a parameter on the meta device holds nothing: allocate the model first, or pass place=")
    parameter.copy_(full)
