"""Schedule-free AdamW against the paper's three sequences and its authors' package; what is measured, saved and handed on is the mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_job import toy_job, train, weights

from llmfactory.checkpoint import io
from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.schedule_free import BASE
from llmfactory.optim.spec import ScheduleFree
from llmfactory.precision.spec import Fp64

RATES = (0.02, 0.05, 0.1, 0.1, 0.04)
"""A warm-up, the peak, and a lower rate, as a guard may take."""


def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, generator=generator, dtype=torch.float64) for _ in RATES]


def ours(spec: ScheduleFree, start: Tensor) -> tuple[Tensor, Tensor]:
    """(y, x) after all steps."""
    weight = torch.nn.Parameter(start.clone())
    model = torch.nn.Module()
    model.weight = weight
    optimizer, average = spec.build([{"params": [weight], "weight_decay": 0.1}]), spec.averaging(5)
    assert average is not None
    average.begin(model, optimizer)
    for lr, gradient in zip(RATES, gradients(), strict=True):
        weight.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    found = average.weight("weight")
    assert found is not None
    return weight.detach(), found


@pytest.mark.parametrize("betas", [[0.9, 0.999], [0.5, 0.9]])
def test_equals_the_paper(betas: list[float]) -> None:
    """x is kept for itself here, and y is made of the two."""
    first, second = betas
    start = torch.linspace(-1, 1, 5, dtype=torch.float64)
    x, z, v, total, largest = start.clone(), start.clone(), torch.zeros(5, dtype=torch.float64), 0.0, 0.0
    for step, (lr, g) in enumerate(zip(RATES, gradients(), strict=True), start=1):
        y = (1 - first) * z + first * x
        v = second * v + (1 - second) * g * g
        z = z - lr * (g / ((v / (1 - second**step)).sqrt() + 1e-8) + 0.1 * y)
        largest = max(largest, lr)
        total += largest**2
        x = (1 - largest**2 / total) * x + largest**2 / total * z
    found_y, found_x = ours(ScheduleFree(lr=0.1, schedule=Constant(), betas=betas), start)
    torch.testing.assert_close(found_x, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_y, (1 - first) * z + first * x, rtol=1e-12, atol=1e-12)


def test_equals_its_authors_package() -> None:
    from schedulefree import AdamWScheduleFree

    start = torch.linspace(-1, 1, 5, dtype=torch.float64)
    weight = torch.nn.Parameter(start.clone())
    theirs = AdamWScheduleFree([weight], lr=0.1, weight_decay=0.1)
    theirs.train()
    for lr, gradient in zip(RATES, gradients(), strict=True):
        weight.grad = gradient.clone()
        theirs.param_groups[0]["lr"] = lr
        theirs.step()
    found_y, found_x = ours(ScheduleFree(lr=0.1, schedule=Constant()), start)
    torch.testing.assert_close(found_y, weight.detach(), rtol=1e-12, atol=1e-12)
    theirs.eval()
    torch.testing.assert_close(found_x, weight.detach(), rtol=1e-12, atol=1e-12)


def test_a_run_hands_on_the_mean_and_goes_on_from_where_it_trained(tmp_path: Path) -> None:
    spec = ScheduleFree(lr=1e-2, schedule=Constant(warmup_steps=2))
    changes = {"optim": spec, "precision": Fp64(), "trainer__save_every": None, "trainer__eval_every": 1}
    whole, curve = train(toy_job(tmp_path, trainer__max_steps=4, **changes), tmp_path / "whole")
    train(toy_job(tmp_path, trainer__max_steps=2, **changes), tmp_path / "parts")
    parts, going_on = train(toy_job(tmp_path, trainer__max_steps=4, **changes), tmp_path / "parts")
    used = weights(whole)
    assert all(torch.equal(weight, used[name]) for name, weight in weights(parts).items())
    assert {step: curve.curve()[step] for step in (3, 4)} == {step: going_on.curve()[step] for step in (3, 4)}

    path = io.path_of(tmp_path / "whole" / "checkpoints", 4)
    saved = dict(io.whole_tensors(path))
    trained = dict(io.whole_tensors(path, trained=True))
    assert all(torch.equal(saved[name], used[name]) for name in saved if name in used)
    assert BASE in {name.rpartition(".")[2] for name in io.read_state(path)["tensors"]}
    moved = [name for name in saved if not torch.equal(saved[name], trained[name])]
    assert len(moved) == len(saved)


def test_the_mean_is_found_from_the_first_rate() -> None:
    with pytest.raises(ConfigError, match="betas"):
        ScheduleFree(lr=0.1, schedule=Constant(), betas=[0.0, 0.9])
