"""Under layouts, a guard decides as in a single process, and the run ends with the same weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from poisoned import WATCH, poisoned_job, run

from llmfactory.guard.spec import GuardSpec, LowerLr, Rewind
from llmfactory.parallel.spec import Mesh, Zero
from llmfactory.precision.spec import Fp64
from llmfactory.run import decisions

GUARDS: dict[str, GuardSpec] = {
    "lower_lr": LowerLr(**WATCH, steps=5),
    "rewind": Rewind(**WATCH, back=4, before=1, after=1),
}
LAYOUTS = {
    "ddp": (Mesh(dp_replicate=2), "rewind"),
    "zero3": (Mesh(dp_shard=2, zero=Zero.parameters), "rewind"),
    "tensor": (Mesh(tp=2), "lower_lr"),
    "pipeline": (Mesh(pp=2), "lower_lr"),
}
STEPS = 34


def train(folder: Path, name: str, guard: str, layout: Mesh) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """What was decided, and the weights."""
    job = poisoned_job(folder, GUARDS[guard], parallel=layout, precision=Fp64(), trainer__max_steps=STEPS)
    model = run(job, folder / name).model
    return decisions.read_lines(folder / name / decisions.FILE), {
        name: p.detach().clone() for name, p in model.named_parameters()
    }


@functools.cache
def single(folder: Path, guard: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    return train(folder, f"single_{guard}", guard, Mesh())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard")


def insist_close(found: Any, expected: Any) -> None:
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-7)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            insist_close(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            insist_close(one, other)
    else:
        assert found == expected


@pytest.mark.dist
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_process_decides_as_a_single_one(name: str, folder: Path) -> None:
    layout, guard = LAYOUTS[name]
    lines, weights = single(folder, guard)
    assert [line["action"] for line in lines] == [guard]
    for found, own in pool.run(2, train, folder, name, guard, layout):
        insist_close(found, lines)
        for key, weight in weights.items():
            assert (own[key] - weight).norm() <= 1e-9 * weight.norm(), key
