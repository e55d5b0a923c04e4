"""What weight decay applies to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmfactory.optim.groups import groups, set_lr


def test_decayed_and_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    decays = {"0.weight": True, "0.bias": False, "1.weight": False, "1.bias": False}
    decayed, kept = groups(model.named_parameters(), decays, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert decayed["params"] == [model[0].weight]
    assert [id(p) for p in kept["params"]] == [id(model[0].bias), id(model[1].weight), id(model[1].bias)]


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    (only,) = groups(model.named_parameters(), {"weight": True, "bias": False}, 0.1)
    assert only["params"] == [model.weight]


def test_an_undeclared_parameter_is_an_error() -> None:
    with pytest.raises(KeyError, match="bias"):
        groups(nn.Linear(2, 3).named_parameters(), {"weight": True}, 0.1)


def test_some_learn_faster() -> None:
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    found = groups([("a", one), ("b", other)], {"a": True, "b": True}, 0.1, {"b": 4.0})
    optimizer = torch.optim.SGD(found, lr=1.0)
    set_lr(optimizer, 0.5)
    assert {id(group["params"][0]): group["lr"] for group in optimizer.param_groups} == {id(one): 0.5, id(other): 2.0}


def test_a_parameter_may_have_a_decay_of_its_own() -> None:
    weights = {name: nn.Parameter(torch.ones(2)) for name in "abcd"}
    found = groups(weights.items(), {"a": True, "b": 0.3, "c": False, "d": 0.1}, 0.1)
    decay = {id(one): group["weight_decay"] for group in found for one in group["params"]}
    assert [decay[id(one)] for one in weights.values()] == [0.1, 0.3, 0.0, 0.1]
