"""The middle of gated linear units in Triton (kernel/gated.py, kernel/tile/gated.py) against PyTorch's operations in float64."""

from __future__ import annotations

import pytest
import torch
from twice import DEVICES, FORMATS, agree, random

from llmfactory.kernel.gated import gated
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import Activation


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("activation", Activation)
def test_each_activation(activation: Activation, dtype: torch.dtype, device: str) -> None:
    gate, up = (3 * random(3, 65, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    agree(lambda g, u, kernel: gated(g, u, FUNCTIONS[activation], activation.name, kernel), [gate, up])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (17, 129), (2, 3, 17)])
def test_shapes(shape: tuple[int, ...], device: str) -> None:
    for strided in (False, True):
        gate, up = (random(*shape, dtype=torch.float64, device=device, seed=seed, strided=strided) for seed in (1, 2))
        agree(lambda g, u, kernel: gated(g, u, FUNCTIONS[Activation.silu], "silu", kernel), [gate, up])


@pytest.mark.parametrize("device", DEVICES)
def test_large_numbers_stay_numbers(device: str) -> None:
    gate = torch.tensor([-3e4, -200.0, 0.0, 200.0, 3e4], device=device)
    for activation in (Activation.silu, Activation.gelu_tanh, Activation.quick_gelu, Activation.tanh):
        agree(lambda g, u, kernel, a=activation: gated(g, u, FUNCTIONS[a], a.name, kernel), [gate, torch.ones_like(gate)], 1e-6)
