"""Which tensors a checkpoint holds, and under which names.

A model's tensors go by their own names (`blocks.0.ffn.up.weight`); optimizer state goes by
`optimizer.<parameter name>.<state name>`. Neither depends on the layout, so a checkpoint restores under any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PREFIX = "optimizer."
T = TypeVar("T")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
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


def _state_names(start: str, saved: Iterable[str]) -> list[str]:
    """Saved names of one parameter's state: `start` and then a name without a dot."""
    return [name for name in saved if name.startswith(start) and "." not in name[len(start) :]]


def describe(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Shape (of the whole) and dtype of each tensor, as JSON can hold them."""
    return {name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in tensors.items()}


def size_in_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the whole tensors, over all processes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def without(tensors: Mapping[str, T], beginning: str | None) -> dict[str, T]:
    """All but those whose names begin so."""
    return {name: tensor for name, tensor in tensors.items() if beginning is None or not name.startswith(beginning)}


def differences(model: Mapping[str, Tensor], saved: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each tensor that only one side has or whose shape differs."""
    lines = [f"missing in the checkpoint: {name} {list(model[name].shape)}" for name in model if name not in saved]
    for name, entry in saved.items():
        if name.startswith(PREFIX):
            continue
        if name not in model:
            lines.append(f"not in the model: {name} {entry['shape']}")
        elif list(model[name].shape) != entry["shape"]:
            lines.append(f"another shape: {name} is {entry['shape']} in the checkpoint, {list(model[name].shape)} in the model")
    return lines
