"""Fill a model's parameters from a seed and their names.

Every parameter is drawn whole, in float32, on the CPU, from a generator of its own that is seeded by its name. So the
first weights depend on nothing else: not on neighbours, on the order of construction, on the device, on the dtype or on
how the parameter is cut (drawing shards in place gives every rank the same numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Parameter, Start, name_seed
from llmfactory.model.declarations import declarations
from llmfactory.model.packed import packed


def initialize(
    model: nn.Module,
    seed: int,
    place: Callable[[nn.Parameter, Tensor], object] | None = None,
    declared: Mapping[str, Parameter] | None = None,
) -> None:
    """Fill every parameter; `place(parameter, full)` stores the whole float32 tensor (None: copy it into the parameter).

    `declared`: what the whole model declares, where `model` is a part of it only; None: what its parts say.

    One full tensor exists at a time.
    """
    declared = declarations(model) if declared is None else declared
    place = place or _copy
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            place(parameter, _drawn(parameter.shape, declared[name].start, seed, name))
        for name, part in packed(model).items():
            for parameter, content in part.contents(_drawn(part.shape, part.declared.start, seed, name)):
                place(parameter, content)


def _drawn(shape: torch.Size, start: Start, seed: int, name: str) -> Tensor:
    full = torch.empty(shape, dtype=torch.float32, device="cpu")
    start.fill(full, torch.Generator().manual_seed(name_seed(seed, name)))
    return full


def _copy(parameter: nn.Parameter, full: Tensor) -> None:
    if parameter.is_meta:
        raise RuntimeError("a parameter on the meta device holds nothing: allocate the model first, or pass place=")
    parameter.copy_(full)
