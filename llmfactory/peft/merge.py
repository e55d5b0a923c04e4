"""What was trained beside a model's matrices put into them, and taken out again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmfactory.peft.part import ADAPTERS, changing


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put the active adapters of matrices into these, in place; the adapters stay, switched off."""
    for name, active in changing(model).items():
        weight = model.get_parameter(name)
        for adapter in active:
            adapter.note = adapter.noted(_wide(weight))
            weight.copy_(adapter.matrix(_wide(weight)))
            adapter.active, adapter.merged = False, True


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Take out of the matrices what `merge` has put in, and switch the adapters on again."""
    for name, held in changing(model, active=False).items():
        weight = model.get_parameter(name)
        for adapter in reversed(held):
            if adapter.merged:
                weight.copy_(adapter.restored(_wide(weight)))
                adapter.active, adapter.merged = True, False


class Changes:
    """Of a model without memory and the values of its adapters, by name: what they make of the base's matrices."""

    def __init__(self, donor: nn.Module, values: Mapping[str, Tensor]) -> None:
        self.changing = changing(donor) if values else {}
        for name, value in values.items():
            if f".{ADAPTERS}." in name:
                path, _, attribute = name.rpartition(".")
                donor.get_submodule(path)._parameters[attribute] = nn.Parameter(_wide(value), requires_grad=False)

    @torch.no_grad()
    def made(self, name: str, weight: Tensor) -> Tensor:
        """A whole tensor of the base as the trained model has it."""
        if name not in self.changing:
            return weight
        weight = _wide(weight)
        for adapter in self.changing[name]:
            first = adapter.first(weight) if adapter.needs_base else None
            if first is not None and first.weight is not None:
                weight = first.weight
            weight = adapter.matrix(weight)
        return weight


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
