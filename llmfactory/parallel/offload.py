"""Weights and optimizer state in memory-mapped files (Rajbhandari et al. 2021, ZeRO-Infinity, section 5.1): the system reads a page
when a block or the optimizer comes to it and writes it back when memory is wanted elsewhere.

Files are deleted as soon as they are mapped, so their space is given back when the process ends, however it ends. It is taken
at once, so that a full disk is an error here and not a crash in the middle of a step.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from llmfactory.core.errors import UserError
from llmfactory.parallel.stepping import only


def memory_in(folder: Path) -> Callable[[Tensor], Tensor]:
    """What `weights.allocate` asks for memory: files of `folder`, with undefined values; each of a tensor's local piece.

    Calls raise UserError: the folder cannot be written, or has too little space.
    """

    def memory(like: Tensor) -> Tensor:
        with _room(folder, "the weights"):
            if isinstance(like, DTensor):
                return _as(_file(like.to_local().shape, like.dtype, folder), like)
            return _file(like.shape, like.dtype, folder)

    return memory


def keep_on_disk(optimizer: Optimizer, folder: Path) -> None:
    """Move the state that the optimizer has, and what it will make at its first step, into files of `folder`.

    Numbers and their order of operations stay as they are. One parameter's state is in memory at a time.

    Raises:
        UserError: the folder cannot be written, or has too little space.
    """
    with _room(folder, "the optimizer's state"):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                state = optimizer.state[parameter] or _first_state(optimizer, group, parameter)
                optimizer.state[parameter] = {key: _mapped(value, folder) for key, value in state.items()}


@contextmanager
def _room(folder: Path, what: str) -> Iterator[None]:
    """The folder is there, and whatever is wrong with it is said."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error)
        raise UserError(
            f"parallel.offload=disk: {what} cannot be kept in {folder}: {reason}; "
            f"name another folder with parallel.offload_dir, or use parallel.offload=cpu"
        ) from error


def _first_state(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """What the optimizer makes for a parameter before its first step: that of a step of length zero and without decay, which some
    add to the gradient, with its counter set back."""
    gradient, parameter.grad = parameter.grad, torch.zeros_like(parameter)
    with only(optimizer, {**group, "params": [parameter], "lr": 0.0, "weight_decay": 0.0}):
        optimizer.step()
    parameter.grad = gradient
    state = dict(optimizer.state[parameter])
    if isinstance(state.get("step"), Tensor):
        state["step"].zero_()
    return state


def _mapped(value: Any, folder: Path) -> Any:
    """The same values in a file; single numbers stay in memory."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if isinstance(value, DTensor):
        return _as(_mapped(value.to_local(), folder), value)
    return _file(value.shape, value.dtype, folder).copy_(value)


def _as(local: Tensor, like: DTensor) -> DTensor:
    """A piece of the same whole."""
    return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def _file(shape: Sequence[int], dtype: torch.dtype, folder: Path) -> Tensor:
    """A tensor in a file that has no name any more; of nothing, in memory."""
    made = torch.empty(shape, dtype=dtype, device="meta")
    if not made.numel():
        return torch.empty(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="tensor-") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, made.nbytes)
        return torch.from_file(file.name, shared=True, size=made.numel(), dtype=dtype).view(shape)
