"""int8 products in a model."""

from __future__ import annotations

import torch
from torch import nn

from llmfactory.kernel.eight_bit_linear import EightBit, Numbers
from llmfactory.precision.spec import Int8Mixed


def model() -> nn.ModuleDict:
    random = torch.Generator().manual_seed(0)
    found = nn.ModuleDict({"up": nn.Linear(8, 6), "down": nn.Linear(6, 8), "head": nn.Linear(8, 3)})
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(generator=random)
    return found


def test_maps_that_are_skipped() -> None:
    some, all_of_them = model(), model()
    Int8Mixed(skip=["down"]).build("cpu").convert_module(some)
    Int8Mixed().build("cpu").convert_module(all_of_them)
    assert [type(module) is EightBit for module in some.values()] == [True, False, False]
    assert [type(module) is EightBit for module in all_of_them.values()] == [True, True, False]


def test_rounding_at_random() -> None:
    x = torch.randn(4, 8)
    for stochastic in (False, True):
        one = model()
        Int8Mixed(stochastic=stochastic).build("cpu").convert_module(one)
        torch.manual_seed(0)
        assert one["up"](x).equal(one["up"](x)) != stochastic
        assert one.eval()["up"](x).equal(one["up"](x))
        assert one["up"].numbers == Numbers(torch.int8, torch.int8, rows=True, stochastic=stochastic)


def test_everything_else_is_mixed() -> None:
    formats = Int8Mixed().build("cpu")
    one = model()
    formats.convert_module(one)
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}
    with formats.forward_context():
        y = one["head"](one["up"](torch.randn(2, 8)) @ one["down"].weight.T)
    assert y.dtype == torch.bfloat16
