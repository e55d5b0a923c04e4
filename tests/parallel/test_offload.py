"""Weights and optimizer state in files of a disk; among several processes: `tests/distributed`."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_job import toy_job, train, weights

from llmfactory.config.rules import check
from llmfactory.core.errors import UserError
from llmfactory.optim.average.spec import Ema, Lawa
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import (
    Adafactor,
    Adam,
    Adamw8bit,
    Lamb,
    Lion,
    Muon,
    OptimSpec,
    ScheduleFree,
    Sgd,
    Soap,
)
from llmfactory.parallel.offload import keep_on_disk, memory_in
from llmfactory.parallel.spec import Mesh, Offload
from llmfactory.parallel.weights import allocate
from llmfactory.peft.spec import Dora, Lora, Qlora


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system does not reserve space")
def test_a_full_disk_is_said_before_the_first_step(tmp_path: Path, monkeypatch) -> None:
    """And leaves no file."""

    def full(*given: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    optimizer = torch.optim.AdamW(nn.Linear(4, 3).parameters())
    with pytest.raises(
        UserError, match=r"state cannot be kept in .*: the disk is full; name another folder with parallel\.offload_dir"
    ):
        keep_on_disk(optimizer, tmp_path)
    with pytest.raises(UserError, match=r"the weights cannot be kept in .*: the disk is full"):
        memory_in(tmp_path)(torch.empty(2, 3, device="meta"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fused", [False, True])
def test_state_that_is_there_keeps_its_numbers(tmp_path: Path, fused: bool) -> None:
    """A run that goes on: what a checkpoint gave is moved, not made anew; the numbers of later steps are those of memory."""
    found = []
    for on_disk in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        for step in range(4):
            if on_disk and step == 2:
                before = {key: value.clone() for key, value in optimizer.state[model.weight].items()}
                keep_on_disk(optimizer, tmp_path)
                after = optimizer.state[model.weight]
                assert all(torch.equal(value, after[key]) for key, value in before.items())
                assert after["exp_avg"].data_ptr() != before["exp_avg"].data_ptr()
            model(torch.full((2, 4), step + 1.0, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam, torch.optim.AdamW])
def test_the_first_state_is_that_of_no_step(tmp_path: Path, kind: Any) -> None:
    """A decay that is added to the gradient leaves nothing in it, a step is not counted, and the gradient is there still."""
    found = []
    for on_disk in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.3)
        for step in range(3):
            model(torch.full((2, 4), step + 1.0, dtype=torch.float64)).square().sum().backward()
            if on_disk and step == 0:
                keep_on_disk(optimizer, tmp_path)
            optimizer.step()
            optimizer.zero_grad()
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_nothing_but_the_optimizer_writes(tmp_path: Path) -> None:
    """A file has no name any more, so that a killed process leaves nothing."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    keep_on_disk(optimizer, tmp_path / "deep" / "folder")
    assert not list((tmp_path / "deep" / "folder").iterdir())
    assert set(optimizer.state) == set(model.parameters())


def test_weights_lie_in_files(tmp_path: Path) -> None:
    """Of their own formats and shapes, tied ones once; what is empty lies nowhere."""
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(4, 3, dtype=torch.bfloat16)})
        model["b"].bias, model["b"].nothing = model["a"].bias, nn.Parameter(torch.empty(0, 3))
    allocate(model, torch.device("cpu"), memory_in(tmp_path / "files"))
    assert model["b"].bias is model["a"].bias
    assert model["b"].weight.dtype is torch.bfloat16
    assert model["b"].weight.shape == (3, 4)
    places = {p.untyped_storage().filename for p in model.parameters() if p.numel()}
    assert len(places) == 3
    assert None not in places
    assert not list((tmp_path / "files").iterdir())


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_single_process_with_all_of_it_on_disk(tmp_path: Path, in_backward: bool) -> None:
    """Weights, state and, stepped as they come, no gradients: the same numbers to the last bit, on resuming too."""
    changes = {
        "trainer__max_steps": 4,
        "trainer__save_every": 2,
        "trainer__eval_every": None,
        "trainer__in_backward": in_backward,
    }
    changes |= {"optim__clip_norm": None} if in_backward else {}
    plain, curve = train(toy_job(tmp_path, **changes), tmp_path / "plain")
    disk = Mesh(offload=Offload.disk, offload_dir=str(tmp_path / "files"))
    train(toy_job(tmp_path, parallel=disk, **{**changes, "trainer__max_steps": 2}), tmp_path / "disk")
    fitted, rows = train(toy_job(tmp_path, parallel=disk, **changes), tmp_path / "disk")
    assert {4: rows.curve()[4]} == {4: curve.curve()[4]}
    assert all(p.untyped_storage().filename is not None for p in fitted.model.parameters())
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(fitted).items())
    assert not list((tmp_path / "files").iterdir())


def optimizer(kind: type[OptimSpec], **changes: Any) -> dict[str, Any]:
    return {"optim": kind(lr=1e-2, schedule=Constant(warmup_steps=2), **changes)}


AGAIN = Mesh(recompute=True)
BESIDE: dict[str, dict[str, Any]] = {
    **{kind.__name__: optimizer(kind) for kind in (Adam, Lamb, Adafactor, Muon, Soap, Lion, Sgd, ScheduleFree)},
    "Adamw8bit": optimizer(Adamw8bit, block_size=16, least_size=16),
    "Adafactor with momentum": optimizer(Adafactor, momentum=0.9),
    **{
        f"{kind.__name__} in backward": {**optimizer(kind, clip_norm=None), "trainer__in_backward": True}
        for kind in (Adafactor, Muon, Soap, ScheduleFree)
    },
    "averages": {"optim__average": Ema()},
    "averages of some steps": {"optim__average": Lawa(every=1, last=2)},
    "micro-batches": {"trainer__micro_batch_size": 2},
    "lora, micro-batches, recomputation": {"peft": Lora(rank=2), "trainer__micro_batch_size": 2, "parallel": AGAIN},
    "dora": {"peft": Dora(rank=2)},
    "qlora": {"peft": Qlora(rank=2)},
    "a budget": {"parallel": Mesh(recompute=True, recompute_budget_mb=0.01)},
    "in backward, recomputation": {"optim__clip_norm": None, "trainer__in_backward": True, "parallel": AGAIN},
    "compiled": {"trainer__compile": True},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
@pytest.mark.parametrize("name", BESIDE)
def test_beside_other_keys(tmp_path: Path, name: str) -> None:
    """The same numbers to the last bit as in memory."""
    steps = {"trainer__max_steps": 3, "trainer__save_every": None, "trainer__eval_every": None, "trainer__keep_best": False}
    found = []
    for place in (Offload.none, Offload.disk):
        changes = {**steps, "trainer__batch_size": 4, **BESIDE[name]}
        files = None if place is Offload.none else str(tmp_path / "files")
        layout = dataclasses.replace(changes.get("parallel", Mesh()), offload=place, offload_dir=files)
        job = toy_job(tmp_path, **{**changes, "parallel": layout})
        assert not check(job)
        fitted, rows = train(job, tmp_path / place.name)
        found.append((weights(fitted), rows.curve()))
    (plain, curve), (disk, its_curve) = found
    assert its_curve == curve
    assert all(torch.equal(disk[key], weight) for key, weight in plain.items())
