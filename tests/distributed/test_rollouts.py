"""Learning from rewards: the same answers, steps and weights whoever writes and however steps are cut up."""

from __future__ import annotations

from pathlib import Path

import pool
import pytest
import torch
from rl_job import Curve, imitating, learning, train
from toy_job import weights

from llmfactory.config.spec import Job

HELD = ["stage/anchor=ewc", "stage.anchor.strength=30"]
"""The policy is held near where it began, as firmly as its first task needs; a critic and a reference beside it are not."""
STAGES = {
    "grpo": ["trainer.batch_size=8", "stage.group=4", "stage.objective.entropy_coef=0.01", *HELD],
    "ppo": ["trainer.batch_size=6", "stage.answers=12", "stage.epochs=2", "stage.kl_target=0.01", *HELD],
}
LAYOUTS = {
    "ddp": (3, ["parallel=ddp", "launch.processes=3"]),
    "zero3": (2, ["parallel=zero3"]),
    "tp_sp": (2, ["parallel=tp_sp"]),
    "cp": (2, ["parallel=cp_ring"]),
    "zero1": (2, ["parallel=zero1"]),
    "tp": (2, ["parallel=tp"]),
    "offload": (2, ["parallel=offload"]),
    "tp x ddp": (4, ["parallel=tp", "parallel.dp_replicate=null", "launch.processes=4"]),
}
USUAL = list(LAYOUTS)[:4]
Numbers = tuple[Curve, dict[str, torch.Tensor]]


def make(folder: Path, stage: str, *overrides: str) -> Job:
    base = ["precision=fp64", "trainer.max_steps=5", "trainer.eval_every=3", "trainer.eval_rows=4", "model/head=lm"]
    return learning(folder, stage, *base, *STAGES[stage], *overrides)


def run(job: Job, folder: Path) -> Numbers:
    fitted, tracker = train(job, folder)
    rows = {step: {name: value for name, value in row.items() if "second" not in name} for step, row in tracker.rows.items()}
    return rows, weights(fitted)


def assert_same(ours: Numbers, reference: Numbers) -> None:
    assert list(reference[0]) == [1, 2, 3, 4, 5]
    assert "held_out_loss" in reference[0][3]
    for step, row in reference[0].items():
        assert ours[0][step] == pytest.approx(row, rel=1e-7, abs=1e-12), step
    for name, weight in reference[1].items():
        if name in ours[1]:
            assert (ours[1][name] - weight).norm() <= 1e-8 * (weight.norm() + 1e-3), name
    assert {name for name in reference[1] if not name.startswith("reference.")} <= ours[1].keys()


@pytest.fixture(scope="module", params=list(STAGES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str], Numbers]:
    """A folder, a stage, the model to start from, and the reference: one process that takes each step whole."""
    folder = tmp_path_factory.mktemp("same")
    fitted, _ = train(imitating(folder, "trainer.max_steps=30", "precision=fp64"), folder / "start")
    begin = [f"init={fitted.checkpoint}"]
    learned = imitating(folder, *begin, "stage=fisher", "stage.rows=16", "precision=fp64")
    learned.stage.build().run(learned, None)
    return folder, request.param, begin, run(make(folder, request.param, *begin), folder / "reference")


def test_something_is_learned(case: tuple[Path, str, list[str], Numbers]) -> None:
    """So that there is something to compare."""
    rows = case[3][0]
    assert len({row["reward"] for row in rows.values()}) > 1
    assert all(row["grad_norm"] > 0 for row in rows.values() if "grad_norm" in row)
    assert all(row["anchor_penalty"] > 0 for row in rows.values() if "anchor_penalty" in row)
    assert "anchor_penalty" in rows[5]


@pytest.mark.parametrize("micro_batch_size", [3, 1])
def test_micro_batches(case: tuple[Path, str, list[str], Numbers], micro_batch_size: int, tmp_path: Path) -> None:
    folder, stage, begin, reference = case
    job = make(folder, stage, *begin, f"trainer.micro_batch_size={micro_batch_size}")
    assert_same(run(job, tmp_path), reference)


@pytest.mark.dist
@pytest.mark.parametrize("layout", [one if one in USUAL else pytest.param(one, marks=pytest.mark.slow) for one in LAYOUTS])
def test_layouts(case: tuple[Path, str, list[str], Numbers], layout: str, tmp_path: Path) -> None:
    folder, stage, begin, reference = case
    world, overrides = LAYOUTS[layout]
    job = make(folder, stage, *begin, "launch=local", *overrides, "trainer.micro_batch_size=2")
    for numbers in pool.run(world, run, job, tmp_path):
        assert_same(numbers, reference)


@pytest.mark.dist
@pytest.mark.parametrize("peft", [["peft=qlora"], ["peft=lora", "peft.start=pissa"]], ids=["qlora", "pissa"])
def test_adapters_whose_base_is_changed(peft: list[str], tmp_path: Path) -> None:
    """Where the base is in few bits, or gives a part of itself to the adapters, reference and critic are still the model that training
    begins with."""
    fitted, _ = train(imitating(tmp_path, "trainer.max_steps=5", "precision=fp64"), tmp_path / "start")
    line = ["precision=fp64", "trainer.max_steps=3", *STAGES["ppo"][:-2], f"init={fitted.checkpoint}", "trainer.eval_every=null"]
    job = learning(tmp_path, "ppo", *line, "model/head=lm", *peft)
    alone = run(job, tmp_path / "alone")
    assert alone[0][1]["kl_to_reference"] == pytest.approx(0, abs=1e-12)
    whole = (
        run(learning(tmp_path, "ppo", *line, "model/head=lm"), tmp_path / "whole")[0] if "peft=qlora" not in peft else alone[0]
    )
    assert alone[0][1]["value_explained"] == pytest.approx(whole[1]["value_explained"], rel=1e-9), "the critic judges as it would"
    laid_out = learning(
        tmp_path, "ppo", *line, "model/head=lm", *peft, "launch=local", "parallel=zero3", "trainer.micro_batch_size=2"
    )
    for rows, _ in pool.run(2, run, laid_out, tmp_path / "two"):
        for step, row in alone[0].items():
            assert rows[step] == pytest.approx(row, rel=1e-7, abs=1e-12), step
