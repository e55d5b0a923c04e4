"""Which tensors a checkpoint holds, and under which names.

A model's tensors go by their own names (`blocks.0.ffn.up.weight`); optimizer state goes by
`optimizer.<parameter name>.<state name>`. Neither depends on the layout, so a checkpoint restores under any other.

Where layers are dealt to the processes of a pipeline, each has some of the names only; a parameter that several use stands on
each of them under one name. So what a model holds is the union over processes (`united`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.model.packed import packed
from llmfactory.optim.average.average import TRAINED, Average
from llmfactory.parallel.mesh import World
from llmfactory.parallel.weights import local

PREFIX = "optimizer."
AVERAGE = f"{PREFIX}average."
"""Beginning of the names of what an average of weights keeps (`optim/average/average.py`)."""
T = TypeVar("T")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a model's checkpoints hold: parameters (a tied one once) and persistent buffers, but for those that are borrowed. They
    share memory with the model."""
    borrowed: frozenset[str] = getattr(model, "borrowed", frozenset())
    return without_names(all_tensors(model), borrowed)


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All but those that were added to the model: what weights to start from give."""
    added: frozenset[str] = getattr(model, "added", frozenset())
    return without_names(all_tensors(model), added)


def starting_tensors(model: nn.Module) -> dict[str, Tensor]:
    """`own_tensors`, and without content the matrices that stand packed in others (`model/packed.py`)."""
    return {**own_tensors(model), **{name: torch.empty(part.shape, device="meta") for name, part in packed(model).items()}}


def without_names(tensors: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters (a tied one once) and persistent buffers, sharing memory with the model."""
    persistent = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: tensor.detach() for name, tensor in {**dict(model.named_parameters()), **buffers}.items()}


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors of the optimizer's state, sharing memory with it. Numbers like the learning rate come from the config."""
    return {
        f"{PREFIX}{name}.{key}": value.detach()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors of a checkpoint: those of the model and of the optimizer, by name."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    copies: dict[str, Tensor] | None = None
    """This process's pieces in the host's memory, which are written in the tensors' place; None: the tensors themselves."""

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer | None, average: Average | None = None) -> Contents:
        """As they stand; `optimizer` is None for a model that none trains."""
        state = {} if optimizer is None else optimizer_tensors(model, optimizer)
        kept = {} if average is None else {f"{AVERAGE}{name}": tensor for name, tensor in average.tensors().items()}
        return cls(model_tensors(model), state | kept)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.model, **self.optimizer}

    def copied(self) -> Contents:
        """What they hold now, whatever becomes of the tensors."""
        copies = {name: local(tensor).to("cpu", copy=True) for name, tensor in self.tensors.items()}
        return Contents(self.model, self.optimizer, copies)


def allocate_optimizer(model: nn.Module, optimizer: Optimizer, saved: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Give the optimizer room for the saved state (name -> shape and dtype) and return it under the same names.

    State shaped like its parameter is laid out like it. Other state (step counters) is whole on every process, and on the
    device only if the optimizer wants it there.
    """
    on_device = bool(optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))
    room: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        start = f"{PREFIX}{name}."
        for full_name in _state_names(start, saved):
            shape, dtype = torch.Size(saved[full_name]["shape"]), getattr(torch, saved[full_name]["dtype"])
            if shape == parameter.shape:
                tensor = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            else:
                tensor = torch.zeros(shape, dtype=dtype, device=parameter.device if on_device else "cpu")
            optimizer.state[parameter][full_name[len(start) :]] = tensor
            room[full_name] = tensor
    return room


def trained_in(tensors: Mapping[str, T], saved: Collection[str]) -> dict[str, T]:
    """Tensors of a model by the names under which a checkpoint holds the weights that were trained, where others are used."""
    places = {name: f"{AVERAGE}{name}.{TRAINED}" for name in tensors}
    return {places[name] if places[name] in saved else name: tensor for name, tensor in tensors.items()}


def _state_names(start: str, saved: Iterable[str]) -> list[str]:
    """Saved names of one parameter's state: `start` and then a name without a dot."""
    return [name for name in saved if name.startswith(start) and "." not in name[len(start) :]]


Described = Mapping[str, Mapping[str, Any]]
"""By name, `shape` (of the whole tensor) and `dtype`."""


def describe(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape (of the whole) and dtype of each tensor, as JSON can hold them."""
    return {name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in tensors.items()}


def united(tensors: Mapping[str, Tensor], world: World) -> dict[str, dict[str, Any]]:
    """What all processes have together, described; called by all of them, each gets the same."""
    return {name: entry for part in world.gather(describe(tensors)) for name, entry in part.items()}


def size_in_bytes(described: Described) -> int:
    """Bytes of the whole tensors."""
    return sum(math.prod(entry["shape"]) * getattr(torch, entry["dtype"]).itemsize for entry in described.values())


def without(tensors: Mapping[str, T], beginning: str | None) -> dict[str, T]:
    """All but those whose names begin so."""
    return {name: tensor for name, tensor in tensors.items() if beginning is None or not name.startswith(beginning)}


def differences(model: Described, saved: Described) -> list[str]:
    """One line for each tensor that only one side has or whose shape differs."""
    lines = [f"missing in the checkpoint: {name} {model[name]['shape']}" for name in model if name not in saved]
    for name, entry in saved.items():
        if name.startswith(PREFIX):
            continue
        shape = entry["shape"]
        if name not in model:
            lines.append(f"not in the model: {name} {shape}")
        elif model[name]["shape"] != shape:
            lines.append(f"another shape: {name} is {shape} in the checkpoint, {model[name]['shape']} in the model")
    return lines
