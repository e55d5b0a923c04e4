"""What is saved under one layout goes on under any other, and first weights are the same under each."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.checkpoint import io
from llmfactory.checkpoint.tensors import size_in_bytes
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.model.ffn.spec import Activation, Moe
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import fit

pytestmark = pytest.mark.dist

LAYOUTS: dict[str, tuple[int, Mesh]] = {
    "single": (1, Mesh()),
    "ddp": (2, Mesh(dp_replicate=None)),
    "zero3": (3, Mesh(dp_shard=None)),  # nothing comes out even
    "tp": (2, Mesh(tp=2)),
    "ep": (2, Mesh(dp_shard=2, ep=2)),
    "cp": (2, Mesh(cp=2)),
    "pp": (2, Mesh(pp=2)),  # the embedding, which is the head's too, stands on both
    "2d": (4, Mesh(dp_shard=2, tp=2, sequence_parallel=True)),  # both cut the same dimension
    "3d": (8, Mesh(pp=2, dp_shard=2, tp=2)),
}
"""Number of processes, and how they are arranged."""


def make(folder: Path, layout: str = "single", **changes: Any) -> Job:
    """A mixture of experts whose vocabulary no layout cuts evenly."""
    experts = Moe(hidden=8, n_experts=4, k=2, activation=Activation.silu, gated=True)
    kept = {"model__ffn": experts, "precision": Fp64(), "optim__clip_norm": 0.05, "optim__lr": 1e-3}
    few = {"trainer__eval_every": None, "trainer__keep_best": False, "trainer__save_every": None, "trainer__batch_size": 6}
    mesh = LAYOUTS[layout][1]
    cut = {"trainer__micro_batch_size": 1} if mesh.pp > 1 else {}
    return toy_job(folder, **{"parallel": mesh, **kept, **few, **cut, **changes})


Rows = dict[int, dict[str, float]]
Weights = dict[str, torch.Tensor]


def train(job: Job, folder: Path) -> tuple[Rows, Weights]:
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    return tracker.rows, {name: tensor.clone() for name, tensor in fitted.model.state_dict().items()}


def start_and_go_on(job: Job, moved: Path, fresh: Path) -> tuple[Weights, Rows, Weights]:
    """The first weights under a layout, before any step; and two steps more of the run in `moved`."""
    still = replace(job, trainer=replace(job.trainer, max_steps=1), optim=replace(job.optim, lr=1e-300))
    return train(still, fresh)[1], *train(job, moved)


def on_disk(path: Path) -> list[int]:
    """Bytes of tensors in each file of a checkpoint."""
    found = []
    for file in sorted(path.glob("*.safetensors")):
        content = file.read_bytes()
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        found.append(sum(b - a for a, b in (entry["data_offsets"] for name, entry in head.items() if name != "__metadata__")))
    return found


@dataclass
class Leg:
    """What every process said under one layout, and what the run had left on the disk by then."""

    layout: str
    results: list[tuple[Weights, Rows, Weights]]
    state: dict[str, Any]
    files: list[int]


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory) -> list[Leg]:
    """One run that goes on under each layout once, two steps each, in an order that was drawn."""
    folder, found = tmp_path_factory.mktemp("legs"), []
    order = list(LAYOUTS)
    random.Random(5).shuffle(order)
    for number, layout in enumerate(order, start=1):
        job = make(folder, layout, trainer__max_steps=2 * number)
        results = pool.run(LAYOUTS[layout][0], start_and_go_on, job, folder / "moved", folder / layout)
        path = io.latest(folder / "moved" / "checkpoints")
        found.append(Leg(layout, results, io.read_state(path), on_disk(path)))
    return found


def test_the_curve_goes_on_from_layout_to_layout(legs: list[Leg], tmp_path: Path) -> None:
    """Weights, optimizer, schedule and samples, as if all were one process's."""
    whole, expected = train(make(tmp_path, trainer__max_steps=2 * len(legs)), tmp_path / "unbroken")
    for number, leg in enumerate(legs, start=1):
        for _, rows, weights in leg.results:
            assert list(rows) == [2 * number - 1, 2 * number], leg.layout
            for step, row in rows.items():
                for key in ("loss", "grad_norm", "lr"):
                    assert row[key] == pytest.approx(whole[step][key], rel=1e-9), (leg.layout, step, key)
            for name, weight in weights.items():
                assert torch.equal(weight, leg.results[0][2][name]), (leg.layout, name)
        assert leg.state["samples"] == 6 * 2 * number
    for name, weight in expected.items():
        torch.testing.assert_close(legs[-1].results[0][2][name], weight, rtol=1e-9, atol=1e-12)


def test_every_number_is_written_once_and_by_all(legs: list[Leg]) -> None:
    for leg in legs:
        size = LAYOUTS[leg.layout][0]
        assert sum(leg.files) == size_in_bytes(leg.state["tensors"]), leg.layout
        assert len(leg.files) == 2 * size, leg.layout


def test_first_weights_are_the_same_under_every_layout(legs: list[Leg]) -> None:
    reference = next(leg for leg in legs if leg.layout == "single").results[0][0]
    assert len({weight.sum().item() for weight in reference.values()}) > len(reference) // 2, "each drawn for itself"
    for leg in legs:
        for weights, *_ in leg.results:
            assert weights.keys() == reference.keys()
            assert all(torch.equal(weight, reference[name]) for name, weight in weights.items()), leg.layout


def refused(job: Job, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        train(job, folder)
    return str(caught.value)


def test_what_does_not_fit_is_told_alike_by_all(tmp_path: Path) -> None:
    """Of a pipeline, each process has some of the tensors only; the message names all that differ. And a lost file is named."""
    train(make(tmp_path, trainer__max_steps=1), tmp_path / "small")
    small = io.latest(tmp_path / "small" / "checkpoints")
    large = make(tmp_path, "pp", model__n_layers=3, model__dim=32, init=str(small), trainer__max_steps=1)
    messages = pool.run(2, refused, large, tmp_path / "large")
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{small} does not fit the model:\n")
    assert "another shape: embedding.weight is [257, 16] in the checkpoint, [257, 32] in the model" in messages[0]
    assert "missing in the checkpoint: blocks.2.attention.q.weight [32, 32]" in messages[0]
    lost = sorted(small.glob("*.safetensors"))[0]
    lost.unlink()
    same = make(tmp_path, "pp", trainer__max_steps=2)
    for message in pool.run(2, refused, same, tmp_path / "small"):
        assert message == f"{lost} is missing, so this checkpoint cannot be read"
