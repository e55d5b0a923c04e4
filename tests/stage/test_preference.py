"""stage=preference: where the reference comes from does not matter, pairs are told apart, a run goes on as if it had not stopped."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from preferred import assert_same, preference_job, train
from toy_job import Memory, Notes, prepared

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.objective.preference_spec import Cpo, Dpo, Ipo, Kto, Orpo, PreferenceSpec, Reference, Rrhf, Simpo, Slic
from llmfactory.optim.schedule.spec import Constant
from llmfactory.parallel.spec import Mesh
from llmfactory.peft.spec import Lora
from llmfactory.run.fit import build_stage, fit
from llmfactory.stage.spec import Preference

COPY, GIVEN, BASE = Reference.copy, Reference.precomputed, Reference.base


@pytest.mark.parametrize("objective", [Dpo(beta=0.5), Kto(beta=0.5)], ids=["dpo", "kto"])
def test_references_agree(objective: PreferenceSpec, tmp_path: Path) -> None:
    """A frozen copy, and what the model said before."""
    copied = train(preference_job(tmp_path, objective, COPY), tmp_path / "copied")
    given = train(preference_job(tmp_path, objective, GIVEN), tmp_path / "given")
    assert_same(given, copied, 1e-12)
    first = copied[0][1]
    assert first["loss"] == pytest.approx(math.log(2) if isinstance(objective, Dpo) else 0.5)
    assert copied[0][3]["loss"] != pytest.approx(first["loss"])
    assert "held_out_loss" in copied[0][3]


def test_a_base_without_its_adapters_is_a_reference(tmp_path: Path) -> None:
    jobs = [preference_job(tmp_path, Dpo(beta=0.5), reference, peft=Lora(rank=2)) for reference in (BASE, GIVEN)]
    assert_same(*(train(job, tmp_path / str(number)) for number, job in enumerate(jobs)), tolerance=1e-12)


def test_dropout_leaves_the_reference_alone(tmp_path: Path) -> None:
    found = [
        train(preference_job(tmp_path, Dpo(beta=0.5), reference, model__dropout=0.3), tmp_path / reference.name)
        for reference in (COPY, GIVEN)
    ]
    assert_same(*found, tolerance=1e-12)


def test_what_is_used_where_nothing_is_asked_for(tmp_path: Path) -> None:
    def used(objective: PreferenceSpec, **changes: object) -> Reference:
        job = preference_job(tmp_path, objective, **changes)
        assert isinstance(job.stage, Preference)
        return job.stage.reference_in(job)

    assert used(Dpo()) is used(Ipo()) is used(Kto()) is COPY
    assert {used(one) for one in (Orpo(), Simpo(), Cpo(), Slic(), Rrhf())} == {Reference.none}
    assert used(Dpo(), peft=Lora()) is BASE
    assert used(Dpo(), peft=Lora(train=["head"])) is used(Dpo(), parallel=Mesh(pp=2)) is GIVEN


SLOW = [Ipo(), Slic(nll=0.1), Cpo(), Simpo(), Rrhf(), Kto()]


@pytest.mark.parametrize(
    "objective",
    [Dpo(), Orpo(), *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)],
    ids=lambda one: type(one).__name__,
)
def test_answers_are_told_apart(objective: PreferenceSpec, tmp_path: Path) -> None:
    """After a few steps, on held-out records too."""
    job = preference_job(
        tmp_path,
        objective,
        trainer__max_steps=30,
        trainer__eval_every=30,
        optim__lr=1e-2,
        optim__schedule=Constant(warmup_steps=2),
    )
    rows, _ = train(job, tmp_path / "run")
    last = rows[30]
    if isinstance(objective, Kto):
        assert last["held_out_reward_wanted"] > last["held_out_reward_unwanted"] + 0.1
    else:
        assert last["held_out_accuracy"] > 0.85, last
    assert last["held_out_loss"] < rows[1]["loss"]


@pytest.mark.parametrize("reference", [COPY, GIVEN])
def test_a_run_goes_on(reference: Reference, tmp_path: Path) -> None:
    """With the reference of its beginning: neither kind is in the checkpoint."""
    job = preference_job(tmp_path, Dpo(beta=0.5), reference, trainer__save_every=2, trainer__max_steps=4, trainer__eval_every=4)
    whole = train(job, tmp_path / "whole")
    train(dataclasses.replace(job, trainer=dataclasses.replace(job.trainer, max_steps=2, eval_every=None)), tmp_path / "parts")
    saved = [path.name for path in (tmp_path / "parts" / "checkpoints").rglob("*.safetensors")]
    assert saved
    rows, weights = train(job, tmp_path / "parts")
    assert rows == {step: row for step, row in whole[0].items() if step > 2}
    assert all(torch.equal(weights[name], weight) for name, weight in whole[1].items())


def test_what_a_reference_said_must_be_there(tmp_path: Path) -> None:
    job = preference_job(tmp_path, Dpo(), GIVEN, trainer__save_every=2, trainer__max_steps=2, trainer__eval_every=None)
    train(job, tmp_path / "run")
    for path in (tmp_path / "run" / "reference").iterdir():
        path.unlink()
    longer = dataclasses.replace(job, trainer=dataclasses.replace(job.trainer, max_steps=4))
    with pytest.raises(UserError, match="is gone: it holds what the model said"):
        train(longer, tmp_path / "run")


def test_other_weights_are_asked_anew(tmp_path: Path) -> None:
    """The file's name follows from the data and the weights."""
    for seed in (0, 1):
        job: Job = dataclasses.replace(preference_job(tmp_path, Dpo(), GIVEN, trainer__eval_every=None), seed=seed)
        fit(job, prepared(job), tmp_path / "run", Memory(), Notes())
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert len(list((tmp_path / "run" / "reference").glob("train_*.npy"))) == 2


def test_a_copy_neither_counts_nor_learns(tmp_path: Path) -> None:
    from llmfactory.model.count import parameters

    job = preference_job(tmp_path, Dpo(), COPY)
    model = build_stage(job, True).model
    assert parameters(model) == parameters(job.model.build())
    names = [name for name, _ in model.named_parameters() if name.startswith("reference.")]
    assert names
    assert set(names) <= model.added & model.borrowed
    assert not any(model.get_parameter(name).requires_grad for name in names)


@pytest.mark.parametrize("objective", [Dpo(beta=0.5), Kto(beta=0.5)], ids=["dpo", "kto"])
def test_evaluating_a_run_gives_its_own_figures(objective: PreferenceSpec, tmp_path: Path) -> None:
    """The reference is what the run began with, which is found again."""
    from llmfactory.config.plain import to_plain
    from llmfactory.run.plain_file import write_yaml
    from llmfactory.stage.spec import Evaluate

    start = preference_job(tmp_path, Orpo(), trainer__max_steps=1, trainer__save_every=1, trainer__eval_every=None)
    fit(start, prepared(start), tmp_path / "start", Memory(), Notes())
    changes = {"trainer__save_every": 3, "init": str(tmp_path / "start")}
    job = preference_job(tmp_path, objective, **changes)
    rows, _ = train(job, tmp_path / "run")
    write_yaml(tmp_path / "run" / "config.yaml", to_plain(job))
    stage = Evaluate(batch_size=3, compressors=False)
    evaluating = dataclasses.replace(job, stage=stage, init=str(tmp_path / "run"))
    found = stage.build().run(evaluating, None)
    for name, value in rows[3].items():
        if name.startswith("held_out_"):
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    shutil.rmtree(tmp_path / "start")
    with pytest.raises(UserError, match=r"start"):
        stage.build().run(evaluating, None)


def test_what_began_at_random_cannot_be_measured_again(tmp_path: Path) -> None:
    from llmfactory.stage.spec import Evaluate

    job = preference_job(tmp_path, Dpo(), trainer__save_every=3)
    train(job, tmp_path / "run")
    stage = Evaluate(compressors=False)
    with pytest.raises(UserError, match="random weights that nobody has kept"):
        stage.build().run(dataclasses.replace(job, stage=stage, init=str(tmp_path / "run")), None)
