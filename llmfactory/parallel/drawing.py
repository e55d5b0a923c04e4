"""The generators that a step draws from: torch's own of the CPU, and of the accelerator if the process computes on one."""

from __future__ import annotations

import torch
from torch import Tensor


def seed_generators(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, of the device that is used alone: that function has every other kind of accelerator remember the call
    and where it came from for the time when it is used, which costs a small step a third of its time, and memory for ever."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed_all(seed)


def generator_states() -> list[Tensor]:
    """Of all generators that a forward pass draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def restore_generators(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
