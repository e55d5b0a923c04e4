"""Steps over weights in bfloat16: what a plain form of each way of rounding keeps, whatever the optimizer, the buckets, the cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmfactory.core.sharding import name_seed
from llmfactory.kernel.random_bits import random_bits
from llmfactory.kernel.stochastic_round import stochastic_round
from llmfactory.optim import narrow
from llmfactory.optim.groups import groups, set_lr
from llmfactory.optim.narrow import MASTER, REST, NarrowWeights
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adafactor, Adam, Adamw, Lamb, Lion, Muon, OptimSpec, Sgd
from llmfactory.precision.spec import Rounding

OPTIMIZERS: dict[str, OptimSpec] = {
    "adafactor": Adafactor(lr=1e-2, schedule=Constant(), momentum=0.5),
    "adam": Adam(lr=1e-2, schedule=Constant(), weight_decay=0.1),
    "adamw": Adamw(lr=1e-2, schedule=Constant()),
    "lamb": Lamb(lr=1e-2, schedule=Constant()),
    "lion": Lion(lr=1e-3, schedule=Constant()),
    "muon": Muon(lr=1e-2, schedule=Constant()),
    "sgd": Sgd(lr=1e-2, schedule=Constant()),
}
SHAPES = {"matrix": (6, 8), "other": (5, 3), "vector": (7,)}


def weights(random: torch.Generator) -> dict[str, nn.Parameter]:
    found = {name: nn.Parameter(torch.randn(shape, generator=random).bfloat16()) for name, shape in SHAPES.items()}
    for parameter in found.values():
        parameter.grad_dtype = torch.float32
    return found


def make(spec: OptimSpec, named: dict[str, nn.Parameter], rounding: Rounding, seed: int = 0) -> NarrowWeights:
    decays = {name: one.dim() > 1 for name, one in named.items()}
    found = groups(named.items(), decays, spec.weight_decay, matrices=["matrix"] if spec.matrices_apart else ())
    return NarrowWeights(spec.build(found), rounding, {one: name for name, one in named.items()}, seed)


def teach(optimizer: NarrowWeights, named: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        for number, one in enumerate(named.values()):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(100 * step + number))
        optimizer.at = step
        set_lr(optimizer, 1e-2 / (1 + step))
        optimizer.step()


def plain(spec: OptimSpec, rounding: Rounding, steps: int) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Everything in float32 parameters of one plain optimizer, rounded between its steps as the table says."""
    start = weights(torch.Generator().manual_seed(0))
    wide = {name: nn.Parameter(one.detach().float()) for name, one in start.items()}
    rest = {name: torch.zeros_like(one) for name, one in wide.items()}
    decays = {name: one.dim() > 1 for name, one in wide.items()}
    matrices = ["matrix"] if spec.matrices_apart else []
    optimizer = spec.build(groups(wide.items(), decays, spec.weight_decay, matrices=matrices))

    def at_random(step: int, name: str, what: str, x: Tensor) -> Tensor:
        bits = random_bits(torch.arange(x.numel(), dtype=torch.int32), name_seed(0, f"round {step} {name} {what}"))
        return stochastic_round(x, bits.view_as(x)).float()

    for step in range(steps):
        for number, (name, one) in enumerate(wide.items()):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(100 * step + number))
            one.data += rest[name]
        set_lr(optimizer, 1e-2 / (1 + step))
        optimizer.step()
        for name, one in wide.items():
            nearest = one.detach().bfloat16().float()
            if rounding is Rounding.stochastic:
                one.data = at_random(step, name, "weight", one.detach())
            elif rounding is Rounding.compensated:
                rest[name] = (one.detach() - nearest).bfloat16().float()
            if rounding in (Rounding.nearest, Rounding.compensated):
                one.data = nearest
            for key, value in optimizer.state[one].items():
                if rounding is not Rounding.master and isinstance(value, Tensor) and value.shape == one.shape:
                    rounded = value.bfloat16().float() if rounding is Rounding.nearest else at_random(step, name, key, value)
                    optimizer.state[one][key] = rounded
    return {name: one.detach().bfloat16() for name, one in wide.items()}, {
        name: optimizer.state[one] for name, one in wide.items()
    }


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_plain_form(name: str, rounding: Rounding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, also where weights are widened in several goes."""
    monkeypatch.setattr(narrow, "AT_ONCE", 20)
    named = weights(torch.Generator().manual_seed(0))
    optimizer = make(OPTIMIZERS[name], named, rounding)
    teach(optimizer, named, range(4))
    expected, state = plain(OPTIMIZERS[name], rounding, 4)
    for key, one in named.items():
        assert one.dtype == torch.bfloat16
        assert one.detach().equal(expected[key]), key
        for what, value in state[key].items():
            found = optimizer.state[one][what]
            if isinstance(value, Tensor):
                assert found.float().equal(value), (key, what)
                narrowed = value.shape == one.shape and rounding is not Rounding.master
                assert found.dtype == (torch.bfloat16 if narrowed else value.dtype), (key, what)
        assert (MASTER in optimizer.state[one]) == (rounding is Rounding.master)
        assert (REST in optimizer.state[one]) == (rounding is Rounding.compensated)


@pytest.mark.parametrize("rounding", Rounding)
def test_goes_on_from_its_state(rounding: Rounding) -> None:
    """What a checkpoint holds, weights and state, is all that the next step needs."""
    unbroken = weights(torch.Generator().manual_seed(0))
    teach(make(OPTIMIZERS["adamw"], unbroken, rounding), unbroken, range(6))
    first = weights(torch.Generator().manual_seed(0))
    before = make(OPTIMIZERS["adamw"], first, rounding)
    teach(before, first, range(3))
    second = {name: nn.Parameter(one.detach().clone()) for name, one in first.items()}
    for one in second.values():
        one.grad_dtype = torch.float32
    after = make(OPTIMIZERS["adamw"], second, rounding)
    for name, one in second.items():
        after.state[one] = {key: value.clone() for key, value in before.state[first[name]].items()}
    teach(after, second, range(3, 6))
    for name, one in second.items():
        assert one.equal(unbroken[name])


def test_small_steps() -> None:
    """250 steps of 1/256 of the last digit each: nearest keeps none, at random the mean is right, the others keep all."""
    ends = {}
    for rounding in Rounding:
        weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = make(Sgd(lr=2**-15, schedule=Constant(), momentum=0.0, weight_decay=0.0), {"vector": weight}, rounding)
        for step in range(250):
            weight.grad_dtype = torch.float32
            weight.grad = torch.full((4096,), -1.0)
            optimizer.at = step
            optimizer.step()
        ends[rounding] = weight.detach().float()
    right = 1 + 250 * 2**-15
    assert ends[Rounding.nearest].eq(1).all()
    for exact in (Rounding.master, Rounding.compensated):
        assert ends[exact].eq(torch.tensor(right).bfloat16().float()).all()
    assert abs(ends[Rounding.stochastic].mean().item() - right) < 2**-7 / 4096**0.5 * 4
    assert ends[Rounding.stochastic].unique().numel() > 1


def test_seeds_names_and_steps_round_differently() -> None:
    def after(seed: int, name: str, first: int) -> Tensor:
        one = nn.Parameter(torch.ones(512, dtype=torch.bfloat16))
        one.grad_dtype = torch.float32
        optimizer = make(Sgd(lr=1e-3, schedule=Constant(), momentum=0.0), {name: one}, Rounding.stochastic, seed)
        one.grad = torch.ones(512)
        optimizer.at = first
        optimizer.step()
        return one.detach()

    assert after(0, "a", 0).equal(after(0, "a", 0))
    for other in ((1, "a", 0), (0, "b", 0), (0, "a", 1)):
        assert not after(0, "a", 0).equal(after(*other))


def test_what_has_no_gradient_rests() -> None:
    named = weights(torch.Generator().manual_seed(0))
    optimizer = make(OPTIMIZERS["adamw"], named, Rounding.stochastic)
    before = {name: one.detach().clone() for name, one in named.items()}
    named["matrix"].grad = torch.randn(6, 8)
    optimizer.step()
    assert not named["matrix"].equal(before["matrix"])
    assert named["other"].equal(before["other"])
    assert named["other"] not in optimizer.state
    optimizer.zero_grad()
    assert named["matrix"].grad is None


def test_takes_no_closure() -> None:
    named = weights(torch.Generator().manual_seed(0))
    closure: Callable[[], None] = lambda: None  # noqa: E731
    with pytest.raises(TypeError, match="closure"):
        make(OPTIMIZERS["sgd"], named, Rounding.nearest).step(closure)
