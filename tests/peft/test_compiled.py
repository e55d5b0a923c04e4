"""Adapters under the compiler of the whole model: the steps of the plain run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job, weights

from llmfactory.config import rules
from llmfactory.config.rule.peft import COMPILED
from llmfactory.config.spec import Job
from llmfactory.core.kernel import Kernel
from llmfactory.peft.spec import Dora, Lora, PeftSpec
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

METHODS: dict[str, PeftSpec] = {"lora": Lora(rank=2), "dora": Dora(rank=2)}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def make(folder: Path, method: str, compiled: bool) -> Job:
    quiet = {"trainer__eval_every": None, "trainer__save_every": None, "trainer__keep_best": False, "trainer__max_steps": 3}
    job = toy_job(folder, peft=METHODS[method], precision=Fp64(), trainer__compile=compiled, **quiet)
    job.trainer.kernel = Kernel.torch
    return job


def train(job: Job, folder: Path) -> dict[str, torch.Tensor]:
    # By the compiler's front, which is where adapters could matter, without writing machine code.
    compile_ = torch.nn.Module.compile
    with (
        mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")),
        mock.patch.object(torch.nn.Module, "compile", lambda module: compile_(module, backend="aot_eager")),
    ):
        fitted = fit(job, prepared(job), folder, Memory(), Notes())
    return weights(fitted)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_steps_are_those_of_the_plain_run(method: str, tmp_path: Path) -> None:
    plain = train(make(tmp_path, method, False), tmp_path / "plain")
    ours = train(make(tmp_path, method, True), tmp_path / "compiled")
    moved = 0
    for name, weight in plain.items():
        assert (ours[name] - weight).norm() <= 1e-9 * max(float(weight.norm()), 1e-3), name
        moved += name.endswith(".b") and bool(weight.abs().max() > 0)
    assert moved, "B begins at zero"


def test_the_pair_composes_and_is_what_was_tried(tmp_path: Path) -> None:
    assert [rules.check(make(tmp_path, method, True)) for method in METHODS] == [[]] * 2
    assert {type(method) for method in METHODS.values()} == set(COMPILED)
