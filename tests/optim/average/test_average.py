"""Averages in a run: what is trained stays what it was, what is measured, saved and handed on is the average, and a run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_job import Memory, filled, toy_job, train, weights

from llmfactory.checkpoint import io
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.optim.average.spec import AverageSpec, Ema, Lawa, None_, Swa
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Sgd
from llmfactory.parallel.mesh import World
from llmfactory.peft.spec import Lora
from llmfactory.run.fit import Fitted, build_stage
from llmfactory.stage.initial import load_model
from llmfactory.stage.workload import work_of

AVERAGES: dict[str, AverageSpec] = {
    "ema": Ema(decay=0.8, warmup=4.0, every=2),
    "swa": Swa(start_share=0.25, every=2),
    "lawa": Lawa(last=3, every=2),
}


def make(folder: Path, average: AverageSpec, **changes: object) -> Job:
    """Steps that differ in size, and an evaluation at every one."""
    optim = Sgd(lr=0.5, schedule=Constant(), average=average)
    often = {"trainer__eval_every": 1, "trainer__save_every": 1, "trainer__keep_last": 9}
    return toy_job(folder, **{"optim": optim, **often, **changes})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted, Memory]:
    """The run without an average, with a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, *train(make(folder, None_()), folder / "run")


def after(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights of the run without an average after a step."""
    found = io.whole_tensors(io.path_of(folder / "run" / "checkpoints", step))
    return {name: tensor.double() for name, tensor in found}


def expected(name: str, folder: Path, step: int, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The average after a step, from the definition."""
    history = [start, *(after(folder, number) for number in range(1, step + 1))]
    if name == "ema":
        mean = dict(start)
        for n, taken in enumerate(range(2, step + 1, 2)):
            keep = min(0.8, (1 + n) / (4 + n))
            mean = {key: keep * mean[key] + (1 - keep) * history[taken][key] for key in mean}
        return mean
    taken = list(range(2, step + 1, 2))
    taken = taken[-3:] if name == "lawa" else taken
    if not taken:
        return history[step]
    return {key: sum(history[number][key] for number in taken) / len(taken) for key in start}


def first_weights(job: Job) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().double().clone() for name, tensor in filled(build_stage(job, True)).model.named_parameters()}


@pytest.mark.parametrize("name", AVERAGES)
def test_it_is_what_its_definition_says_and_training_does_not_see_it(
    name: str, plain: tuple[Path, Fitted, Memory], tmp_path: Path
) -> None:
    """`optim.<any>.average`; ema: decay, warmup, every; swa: start_share, every; lawa: last, every."""
    folder, _, curve = plain
    job = make(folder, AVERAGES[name])
    fitted, tracker = train(job, tmp_path / "run")
    for step, row in tracker.rows.items():
        for key in ("loss", "grad_norm", "lr"):
            assert row[key] == curve.rows[step][key], (step, key)
    start = first_weights(job)
    for step in (1, 4, 7, 8):
        path = io.path_of(tmp_path / "run" / "checkpoints", step)
        wanted = expected(name, folder, step, start)
        for key, tensor in io.whole_tensors(path):
            torch.testing.assert_close(tensor.double(), wanted[key], rtol=1e-6, atol=1e-7)
        if step >= job.optim.average.first_step(8):
            for key, tensor in io.whole_tensors(path, trained=True):
                torch.testing.assert_close(tensor.double(), after(folder, step)[key], rtol=0, atol=0)
    wanted = expected(name, folder, 8, start)
    for key, tensor in weights(fitted).items():
        torch.testing.assert_close(tensor.double(), wanted[key], rtol=1e-6, atol=1e-7)
    assert tracker.rows[8]["held_out_loss"] != curve.rows[8]["held_out_loss"]
    assert fitted.best_loss == min(row["held_out_loss"] for row in tracker.rows.values() if "held_out_loss" in row)


def test_both_kinds_of_weights_can_be_taken(plain: tuple[Path, Fitted, Memory], tmp_path: Path) -> None:
    """`init_trained`."""
    folder, unaveraged, _ = plain
    job = make(folder, AVERAGES["ema"])
    fitted, _ = train(job, tmp_path / "run")
    world, precision = World(torch.device("cpu")), job.precision.build("cpu")
    averaged = load_model(replace(job, init="."), fitted.checkpoint, precision, world)
    trained = load_model(replace(job, init=".", init_trained=True), fitted.checkpoint, precision, world)
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(tensor, fitted.model.state_dict()[name]), name
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, unaveraged.model.state_dict()[name]), name
    with pytest.raises(UserError, match="holds no average"):
        load_model(replace(job, init=".", init_trained=True), unaveraged.checkpoint, precision, world)


@pytest.mark.parametrize("name", AVERAGES)
def test_a_run_goes_on_bit_by_bit(name: str, plain: tuple[Path, Fitted, Memory], tmp_path: Path) -> None:
    folder = plain[0]
    changes = {"trainer__eval_every": 4, "trainer__save_every": None, "trainer__save_async": True}
    job = make(folder, AVERAGES[name], **changes)
    if name == "swa":
        job = make(folder, Swa(start_step=2, every=2), **changes)
    whole, curve = train(job, tmp_path / "whole")
    short = toy_job(folder, optim=job.optim, trainer=job.trainer, trainer__max_steps=5)
    train(short, tmp_path / "broken")
    broken, rest = train(job, tmp_path / "broken")
    assert rest.rows.keys() == {6, 7, 8}
    for step, row in rest.curve().items():
        assert row == curve.curve()[step]
    for key, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(broken)[key]), key
    assert io.read_state(whole.checkpoint)["average"] == io.read_state(broken.checkpoint)["average"]


def test_adapters_alone_are_averaged(plain: tuple[Path, Fitted, Memory], tmp_path: Path) -> None:
    folder, base, _ = plain
    job = make(
        folder,
        AVERAGES["ema"],
        peft=Lora(),
        init=str(base.checkpoint),
        trainer__eval_every=None,
        trainer__keep_best=False,
        trainer__save_every=None,
    )
    fitted, _ = train(job, tmp_path / "run")
    saved = io.read_state(fitted.checkpoint)["tensors"]
    averaged = {name for name in saved if name.endswith(".trained")}
    assert averaged == {f"optimizer.average.{name}.trained" for name, p in fitted.model.named_parameters() if p.requires_grad}
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(dict(fitted.model.named_parameters()).get(name, tensor), tensor), name


def test_another_average_begins_anew(plain: tuple[Path, Fitted, Memory], tmp_path: Path) -> None:
    """With resume=changed: from the weights that were trained, whatever was kept of them before."""
    folder = plain[0]
    changes = {"trainer__eval_every": None, "trainer__keep_best": False, "trainer__save_every": None}
    train(make(folder, AVERAGES["lawa"], **changes, trainer__max_steps=4), tmp_path / "run")
    fitted, _ = train(make(folder, None_(), **changes), tmp_path / "run")
    unbroken = plain[1].model.state_dict()
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in fitted.model.state_dict().items())
    saved = io.read_state(fitted.checkpoint)
    assert "average" not in saved
    assert not [name for name in saved["tensors"] if "average" in name]


def test_a_plan_counts_what_is_kept(tmp_path: Path) -> None:
    """`swa.start_step` moves no memory; `lawa.last` does."""
    kept = {
        name: work_of(make(tmp_path, average), is_cpu=True)
        for name, average in {"none": None_(), **AVERAGES, "five": Lawa(last=5), "late": Swa(start_step=7)}.items()
    }
    state = {name: work.weight_state for name, work in kept.items()}
    one = state["ema"] - state["none"]
    assert one > 0
    assert state["swa"] == state["late"] == state["ema"]
    assert (state["lawa"] - state["none"], state["five"] - state["none"]) == (3 * one, 5 * one)
