"""Runs that go on from a checkpoint are the unbroken ones, bit for bit, whatever the optimizer keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_job import toy_job, train, weights

from llmfactory.config import rules
from llmfactory.optim.average.spec import Ema
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adafactor, Adam, Adamw, Adamw8bit, Lamb, Lion, Muon, OptimSpec, ScheduleFree, Sgd, Soap
from llmfactory.parallel.offload import keep_on_disk
from llmfactory.peft.spec import Lora, PeftSpec
from llmfactory.peft.spec import None_ as NoPeft
from llmfactory.precision.spec import Fp64

OPTIMIZERS: dict[str, OptimSpec] = {
    "adafactor": Adafactor(lr=1e-2, schedule=Constant(), momentum=0.5),
    "adamw8bit": Adamw8bit(lr=1e-3, schedule=Constant(), block_size=5, least_size=0),
    "lamb": Lamb(lr=1e-2, schedule=Constant()),
    "lion": Lion(lr=1e-3, schedule=Constant()),
    "muon": Muon(lr=1e-3, schedule=Constant()),
    "soap": Soap(lr=1e-3, schedule=Constant(), refresh_every=2),
    "adam": Adam(lr=1e-3, schedule=Constant()),
    "adamw": Adamw(lr=1e-3, schedule=Constant()),
    "schedule_free": ScheduleFree(lr=1e-3, schedule=Constant()),
    "sgd": Sgd(lr=1e-2, schedule=Constant()),
}


@pytest.mark.parametrize("peft", [NoPeft(), pytest.param(Lora(rank=2), marks=pytest.mark.slow)], ids=["whole", "lora"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_as_if_it_had_not_ended(name: str, peft: PeftSpec, tmp_path: Path) -> None:
    """Of a head that borrows the embedding or of adapters, with a mean of the weights, layers that learn at rates of their own, and
    micro-batches that do not come out even."""
    optim = OPTIMIZERS[name]
    beside = {} if isinstance(optim, ScheduleFree) else {"average": Ema(decay=0.7)}
    optim = replace(optim, layer_decay=None if isinstance(peft, Lora) else 0.5, **beside)
    changes = {"trainer__eval_every": None, "trainer__save_every": None, "optim": optim, "precision": Fp64()}
    changes |= {"trainer__micro_batch_size": 3, "trainer__keep_best": False, "peft": peft}
    assert rules.check(toy_job(tmp_path, **changes)) == []
    whole, _ = train(toy_job(tmp_path, trainer__max_steps=4, **changes), tmp_path / "whole")
    train(toy_job(tmp_path, trainer__max_steps=2, **changes), tmp_path / "parts")
    parts, _ = train(toy_job(tmp_path, trainer__max_steps=4, **changes), tmp_path / "parts")
    expected = weights(whole)
    for key, weight in weights(parts).items():
        assert torch.equal(weight, expected[key]), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_that_is_made_on_disk_gives_the_same_steps(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [[torch.randn(shape, generator=generator) for shape in ((6, 10), (10,))] for _ in range(4)]
    found = []
    for on_disk in (False, True):
        weights = [first.clone().requires_grad_() for first in given[0]]
        groups = [{"params": [one], "weight_decay": 0.1, "matrix": one.dim() == 2} for one in weights]
        optimizer = OPTIMIZERS[name].build(groups)
        if on_disk:
            keep_on_disk(optimizer, tmp_path)
            assert [group["params"] for group in optimizer.param_groups] == [[one] for one in weights]
        for gradients in given[1:]:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        found.append([one.detach() for one in weights])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
