"""Sizes of gradients and steps, part by part."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from toy_job import toy_job, train, weights

from llmfactory.model.head.spec import Lm
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Sgd
from llmfactory.precision.spec import Fp64
from llmfactory.stage.magnitudes import by_part, part_of


def test_they_are_what_a_plain_step_says(tmp_path: Path) -> None:
    """A step of plain gradient descent is as long as the clipped gradient times the rate."""
    optim = Sgd(lr=0.5, schedule=Constant(), momentum=0.0, weight_decay=0.0, clip_norm=0.1)
    few = {"trainer__max_steps": 2, "trainer__eval_every": None, "trainer__save_every": None, "trainer__keep_best": False}
    job = toy_job(tmp_path, optim=optim, precision=Fp64(), model__head=Lm(tied=False), trainer__log_parts=True, **few)
    fitted, tracker = train(job, tmp_path / "run")
    after = weights(fitted)
    parts = {part_of(name) for name in after}
    assert parts == {"embedding", "blocks.0", "blocks.1", "norm", "head"}
    row = tracker.rows[2]
    norms = {part: row[f"grad_norm/{part}"] for part in parts}
    assert math.hypot(*norms.values()) == pytest.approx(row["grad_norm"], rel=1e-9)
    factor = 0.1 / (row["grad_norm"] + 1e-6)
    for part in parts:
        length = math.sqrt(sum(float(one.square().sum()) for name, one in after.items() if part_of(name) == part))
        # The weights before the step are those after it but for the step, which is small.
        assert row[f"update_ratio/{part}"] == pytest.approx(0.5 * factor * norms[part] / length, rel=0.05), part


def test_steps_that_are_not_logged_have_none(tmp_path: Path) -> None:
    few = {"trainer__max_steps": 4, "trainer__eval_every": None, "trainer__save_every": None, "trainer__log_every": 3}
    _, tracker = train(toy_job(tmp_path, trainer__log_parts=True, trainer__keep_best=False, **few), tmp_path / "run")
    assert [step for step, row in tracker.rows.items() if "update_ratio/blocks.1" in row] == [1, 3, 4]


def test_parts() -> None:
    assert [part_of(name) for name in ("encoder.blocks.10.ffn.up.weight", "head.weight", "log_rate")] == [
        "encoder.blocks.10",
        "head",
        "log_rate",
    ]
    found = by_part({"a.x": [3.0, 6.0, 0.0], "a.y": [4.0, 8.0, 1.0], "b.z": [1.0, 0.0, 1.0]})
    assert found == {"grad_norm/a": 5.0, "grad_norm/b": 1.0, "update_ratio/a": 0.1}
