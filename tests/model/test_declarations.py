from __future__ import annotations

import pytest
import torch
from torch import nn

from llmfactory.core.sharding import Constant, Normal, Parameter
from llmfactory.model.declarations import declarations
from llmfactory.model.head.spec import Lm
from llmfactory.model.part import Part


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_once_in_order(family, tied):
    model = family(head=Lm(tied=tied, bias=True)).build()
    assert list(declarations(model)) == [name for name, _ in model.named_parameters()]


def test_matrices_decay_and_vectors_do_not(family):
    model = family(head=Lm(tied=False, bias=True)).build()
    for name, declared in declarations(model).items():
        assert declared.decay is (model.get_parameter(name).dim() == 2), name


def test_vectors_start_neutral(family):
    for name, declared in declarations(family().build()).items():
        if not declared.decay:
            assert declared.start == Constant(0.0 if name.endswith("bias") else 1.0), name


class Own(Part):
    def __init__(self, declared: list[str], size: int = 2) -> None:
        super().__init__()
        self.declared = declared
        self.weight = nn.Parameter(torch.zeros(size))

    def declare(self):
        return dict.fromkeys(self.declared, Parameter(Normal(1.0)))


def test_an_undeclared_parameter_is_named():
    with pytest.raises(TypeError, match=r"no part declares the parameters 1\.weight, 2\.weight"):
        declarations(nn.Sequential(Own(["weight"]), Own([]), nn.Linear(2, 2, bias=False)))


def test_a_declaration_of_nothing_is_named():
    with pytest.raises(TypeError, match=r"Own at '0' declares 'bias'"):
        declarations(nn.Sequential(Own(["weight", "bias"])))


def test_a_parameter_under_two_names_may_be_declared_once_only():
    first, second = Own(["weight"]), Own(["weight"])
    second.weight = first.weight
    with pytest.raises(TypeError, match=r"'1\.weight' is declared twice: it is '0\.weight'"):
        declarations(nn.Sequential(first, second))
    second.declared = []
    assert list(declarations(nn.Sequential(first, second))) == ["0.weight"]
