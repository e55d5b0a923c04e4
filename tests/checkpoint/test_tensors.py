"""Names of a checkpoint's tensors."""

from __future__ import annotations

import torch
from torch import nn

from llmfactory.checkpoint.tensors import allocate_optimizer, describe, model_tensors, optimizer_tensors, size_in_bytes


def test_a_tied_parameter_stands_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    assert list(model_tensors(model)) == ["a.weight"]
    assert size_in_bytes(describe(model_tensors(model))) == 16


def test_names_that_begin_alike_are_kept_apart() -> None:
    """`a` and `a.b` both own state; neither takes the other's."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.ParameterDict({"b": nn.Parameter(torch.ones(2))})
            self.register_parameter("x", nn.Parameter(torch.ones(3)))

    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = optimizer_tensors(model, optimizer)
    assert set(saved) == {"optimizer.a.b.momentum_buffer", "optimizer.x.momentum_buffer"}
    fresh = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    room = allocate_optimizer(model, fresh, describe(saved))
    assert room.keys() == saved.keys()
    room["optimizer.x.momentum_buffer"].fill_(5)
    assert torch.equal(fresh.state[model.x]["momentum_buffer"], torch.full((3,), 5.0))
