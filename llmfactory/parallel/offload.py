"""Optimizer state in memory-mapped files (Rajbhandari et al. 2021, ZeRO-Infinity, section 5.1): the system reads a page when the
optimizer comes to it and writes it back when memory is wanted elsewhere.

Files are deleted as soon as they are mapped, so their space is given back when the process ends, however it ends. It is taken
at once, so that a full disk is an error here and not a crash in the middle of a step.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from llmfactory.core.errors import UserError


def keep_on_disk(optimizer: Optimizer, folder: Path) -> None:
    """Move the state that the optimizer has, and what it will make at its first step, into files of `folder`.

    Numbers and their order of operations stay as they are. One parameter's state is in memory at a time.

    Raises:
        UserError: the folder cannot be written, or has too little space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter] or _first_state(optimizer, group, parameter)
                optimizer.state[parameter] = {key: _mapped(value, folder) for key, value in state.items()}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error)
        raise UserError(
            f"parallel.offload=disk: the optimizer's state cannot be kept in {folder}: {reason}; "
            f"name another folder with parallel.offload_dir, or use parallel.offload=cpu"
        ) from error


def _first_state(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """What the optimizer makes for a parameter before its first step: that of a step of length zero and without decay, which some
    add to the gradient, with its counter set back."""
    gradient, parameter.grad = parameter.grad, torch.zeros_like(parameter)
    groups, optimizer.param_groups = optimizer.param_groups, [{**group, "params": [parameter], "lr": 0.0, "weight_decay": 0.0}]
    optimizer.step()
    optimizer.param_groups, parameter.grad = groups, gradient
    state = dict(optimizer.state[parameter])
    if isinstance(state.get("step"), Tensor):
        state["step"].zero_()
    return state


def _mapped(value: Any, folder: Path) -> Any:
    """The same values in a file; single numbers stay in memory."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if isinstance(value, DTensor):
        local = _mapped(value.to_local(), folder)
        return DTensor.from_local(
            local, value.device_mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
        )
    if not value.numel():
        return value
    with tempfile.NamedTemporaryFile(dir=folder, prefix="optimizer-") as file:
        size = value.numel() * value.element_size()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        mapped = torch.from_file(file.name, shared=True, size=value.numel(), dtype=value.dtype).view(value.shape)
    mapped.copy_(value)
    return mapped
