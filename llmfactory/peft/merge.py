"""What was trained beside a model's matrices put into them, and taken out again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmfactory.model.packed import packed
from llmfactory.peft.part import ADAPTERS, BIAS, MatrixAdapter, changing


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Put the active adapters of linear maps into their matrices and biases, in place; the adapters stay, switched off. Beside
    matrices in few bits, which could not take them up, they stay on."""
    kept = packed(model)
    changed = {name: held for name, held in changing(model).items() if name not in kept}
    for name, active in changed.items():
        weight = model.get_parameter(name)
        for adapter in active:
            if not is_bias(name):
                adapter.note = adapter.noted(_wide(weight))
            weight.copy_(_changed(adapter, name, _wide(weight)))
    for adapter in _each(changed):
        adapter.active, adapter.merged = False, True


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Take out again what `merge` has put in, and switch the adapters on."""
    changed = {name: [one for one in held if one.merged] for name, held in changing(model, active=False).items()}
    for name, held in changed.items():
        weight = model.get_parameter(name)
        for adapter in reversed(held):
            wide = _wide(weight)
            weight.copy_(adapter.restored_offset(wide) if is_bias(name) else adapter.restored(wide))
    for adapter in _each(changed):
        adapter.active, adapter.merged, adapter.note = True, False, None


def is_bias(name: str) -> bool:
    return name.endswith(f".{BIAS}")


def _changed(adapter: MatrixAdapter, name: str, weight: Tensor) -> Tensor:
    return adapter.offset(weight) if is_bias(name) else adapter.matrix(weight)


def _each(changed: Mapping[str, list[MatrixAdapter]]) -> list[MatrixAdapter]:
    return list(dict.fromkeys(adapter for held in changed.values() for adapter in held))


class Changes:
    """Of a model without memory and the values of its adapters, by name: what they make of the base's matrices."""

    def __init__(self, donor: nn.Module, values: Mapping[str, Tensor]) -> None:
        self.changing, self.packed = (changing(donor), packed(donor)) if values else ({}, {})
        for name, value in values.items():
            if f".{ADAPTERS}." in name:
                path, _, attribute = name.rpartition(".")
                donor.get_submodule(path)._parameters[attribute] = nn.Parameter(_wide(value), requires_grad=False)

    @torch.no_grad()
    def made(self, name: str, weight: Tensor) -> Tensor:
        """A whole tensor of the base as the trained model has it."""
        if name in self.packed:  # what the adapters were trained beside
            weight = self.packed[name].rounded(_wide(weight))
        if name not in self.changing:
            return weight
        weight = _wide(weight)
        for adapter in self.changing[name]:
            first = adapter.first(weight) if adapter.needs_base and not is_bias(name) else None
            if first is not None and first.weight is not None:
                weight = first.weight
            weight = _changed(adapter, name, weight)
        return weight


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
