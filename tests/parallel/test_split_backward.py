"""A backward pass in two parts leaves the gradients of a whole one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.parallel.split_backward import backward_of_inputs

SIZE = 5


class Network(nn.Module):
    """Two layers; what they share is the subclasses'."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))
        self.table = nn.Parameter(torch.randn(SIZE, SIZE))
        self.double()


class Plain(Network):
    def forward(self, x: Tensor) -> list[Tensor]:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return [x @ self.table]


class SharedTable(Network):
    """As a table of score biases: each use lies behind the one before."""

    def forward(self, x: Tensor) -> list[Tensor]:
        bias = self.table * self.table.mean()
        for layer in self.layers:
            x = x + (layer(x) + bias[0]).softmax(-1) @ bias
        return [x]


class SharedLayer(Network):
    def forward(self, x: Tensor) -> list[Tensor]:
        for _ in range(3):
            x = x + torch.tanh(self.layers[0](x))
        return [F.linear(x, self.table), self.layers[1](x).square().sum()]


class BesideTheWay(Network):
    """An output that no input leads to, and an input that is passed on."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, torch.tanh(self.layers[0](x)), self.layers[0](self.table).square().sum(), self.layers[1](x)]


class Chained(Network):
    """Three weights whose uses overlap pairwise."""

    def forward(self, x: Tensor) -> list[Tensor]:
        first, second = self.layers
        x = torch.tanh(F.linear(x, first.weight, self.table[0]))
        x = torch.tanh(F.linear(x, second.weight, self.table[1]))
        return [torch.tanh(F.linear(x, first.weight, second.bias))]


@pytest.mark.parametrize("kind", [Plain, SharedTable, SharedLayer, BesideTheWay, Chained])
def test_both_parts_make_the_whole(kind: Callable[[], Network]) -> None:
    torch.manual_seed(0)
    network = kind()
    x = torch.randn(3, SIZE, dtype=torch.float64, requires_grad=True)
    given = [None if out.dim() == 0 else torch.randn_like(out) for out in network(x)]
    torch.autograd.backward(network(x), given)
    want = {name: p.grad for name, p in network.named_parameters()}
    want_x, x.grad = x.grad, None
    network.zero_grad()
    for _ in range(2):  # a second micro-batch adds up
        (grad_x,), later = backward_of_inputs(network(x), given, [x])
        torch.testing.assert_close(grad_x, want_x, rtol=1e-12, atol=1e-12)
        before = {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
        later()
    for name, p in network.named_parameters():
        if want[name] is None:
            assert p.grad is None
            continue
        torch.testing.assert_close(p.grad, 2 * want[name], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(before[name], want[name], rtol=1e-12, atol=1e-12)
    assert x.grad is None


def test_an_input_that_nothing_uses_has_no_gradient() -> None:
    network = Plain()
    x, idle = (torch.randn(3, SIZE, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (_, nothing), _ = backward_of_inputs(network(x), [torch.ones(3, SIZE, dtype=torch.float64)], [x, idle])
    assert nothing is None


def test_frozen_weights_stay_without() -> None:
    network = Plain().requires_grad_(False)
    x = torch.randn(3, SIZE, dtype=torch.float64, requires_grad=True)
    (grad_x,), later = backward_of_inputs(network(x), [torch.ones(3, SIZE, dtype=torch.float64)], [x])
    later()
    assert grad_x is not None
    assert all(p.grad is None for p in network.parameters())
