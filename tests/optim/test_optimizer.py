"""Runs that go on from a checkpoint are the unbroken ones, bit for bit, whatever the optimizer keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_job import toy_job, train, weights

from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adafactor, Adamw8bit, Lamb, Lion, Muon, OptimSpec
from llmfactory.precision.spec import Fp64

OPTIMIZERS: dict[str, OptimSpec] = {
    "adafactor": Adafactor(lr=1e-2, schedule=Constant(), momentum=0.5),
    "adamw8bit": Adamw8bit(lr=1e-3, schedule=Constant(), block_size=5, least_size=0),
    "lamb": Lamb(lr=1e-2, schedule=Constant()),
    "lion": Lion(lr=1e-3, schedule=Constant()),
    "muon": Muon(lr=1e-3, schedule=Constant()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_as_if_it_had_not_ended(name: str, tmp_path: Path) -> None:
    changes = {"trainer__eval_every": None, "trainer__save_every": None, "optim": OPTIMIZERS[name], "precision": Fp64()}
    whole, _ = train(toy_job(tmp_path, trainer__max_steps=4, **changes), tmp_path / "whole")
    train(toy_job(tmp_path, trainer__max_steps=2, **changes), tmp_path / "parts")
    parts, _ = train(toy_job(tmp_path, trainer__max_steps=4, **changes), tmp_path / "parts")
    expected = weights(whole)
    for key, weight in weights(parts).items():
        assert torch.equal(weight, expected[key]), key
