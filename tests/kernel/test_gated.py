"""The middle of gated linear units (kernel/gated.py) against PyTorch's operations, in Triton (kernel/tile/gated.py) in float64."""

from __future__ import annotations

import pytest
import torch
from twice import DEVICES, FORMATS, agree, random

from llmfactory.kernel.gated import gated, plain
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


@pytest.mark.parametrize("activation", Activation)
def test_less_is_kept_and_nothing_else_changes(activation: Activation) -> None:
    """Both factors and no more; the numbers are those of PyTorch's operations to the last bit, the gradients those of differences."""
    function, slope = FUNCTIONS[activation], random(3, 5, dtype=torch.float32, device="cpu", seed=3)
    for dtype in (torch.float32, torch.bfloat16):
        found, kept = [], []
        for way in (lambda g, u: gated(g, u, function, activation.name), lambda g, u: plain(g, u, function)):
            gate, up = (random(3, 5, dtype=dtype, device="cpu", seed=seed).requires_grad_() for seed in (1, 2))
            storages: set[int] = set()
            with torch.autograd.graph.saved_tensors_hooks(lambda x, s=storages: s.add(x.data_ptr()) or x, lambda x: x):
                y = way(gate, up)
            found.append([y.detach(), *torch.autograd.grad(y, (gate, up), slope.to(dtype))])
            kept.append(storages == {gate.data_ptr(), up.data_ptr()})
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
        assert kept == [True, False]
    leaves = [(2 * random(2, 3, dtype=torch.float64, device="cpu", seed=seed)).requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(lambda g, u: gated(g, u, function, activation.name), leaves)


def test_a_frozen_factor_gets_no_gradient() -> None:
    for needs in ((True, False), (False, True)):
        gate, up = (torch.full((2,), 0.5, requires_grad=need) for need in needs)
        gated(gate, up, torch.tanh, "tanh").sum().backward()
        assert [gate.grad is not None, up.grad is not None] == list(needs)
