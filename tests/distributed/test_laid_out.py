"""What a run does with a model that lies over several processes: it is filled and measured as it lies, and put together only
where that fits."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.model.head.spec import Lm
from llmfactory.parallel.mesh import open_world
from llmfactory.parallel.spec import Mesh
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.parallel.weights import local
from llmfactory.precision.spec import Fp64
from llmfactory.run import laid_out
from llmfactory.run.fit import fit
from llmfactory.run.train import figures_of

pytestmark = pytest.mark.dist

LAYOUTS = {
    "zero3": (3, Mesh(dp_shard=3)),
    "tp": (2, Mesh(tp=2)),
    "pp": (2, Mesh(pp=2)),
    "cp": (2, Mesh(cp=2)),
}


def make(folder: Path, layout: Mesh, **changes: Any) -> Job:
    few = {"trainer__max_steps": 2, "trainer__eval_every": None, "trainer__keep_best": False, "trainer__batch_size": 6}
    return toy_job(folder, **{"parallel": layout, "precision": Fp64(), "trainer__micro_batch_size": 3, **few, **changes})


def ended(job: Job, folder: Path, free: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """The last figures of a run, and what was said about them. `free`: bytes of memory that are said to be free."""
    if free is not None:
        laid_out.free_bytes = lambda device: free
    notes: list[str] = []
    with open_world(job.parallel.mesh(), "cpu") as world:
        data = prepared(job)
        fitted = fit(job, data, folder, Memory(), Notes())
        return figures_of(job, fitted, data, world, notes.append), notes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_figures_are_those_of_a_single_process(tmp_path: Path, layout: str) -> None:
    size, mesh = LAYOUTS[layout]
    expected, _ = ended(make(tmp_path, Mesh()), tmp_path / "single")
    assert expected["sample"]["text"]
    results = pool.run(size, ended, make(tmp_path, mesh), tmp_path / layout)
    for rank, (found, notes) in enumerate(results):
        assert notes == []
        for key in ("held_out_loss", "perplexity", "bits_per_byte"):
            assert found[key] == pytest.approx(expected[key], rel=1e-9)
        assert found["parameters"] == expected["parameters"]
        assert found.get("sample") == (expected["sample"] if rank == 0 else None)


def test_a_model_that_does_not_fit_is_measured_and_writes_no_sample(tmp_path: Path) -> None:
    for found, notes in pool.run(2, ended, make(tmp_path, Mesh(tp=2)), tmp_path / "run", 100_000, alone=True):
        assert found["held_out_loss"] > 0
        assert "sample" not in found
        (note,) = notes
        assert note.startswith(
            "no sample: the whole model takes 0.00 GiB, too much for the 0.00 GiB that are free; stage=generate"
        )


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within, and those of them that live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and one.device.type == "cpu":
                self._take_note_of(local(one).untyped_storage())
        return result

    def _take_note_of(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


def filling(job: Job, folder: Path) -> tuple[int, int, int, int]:
    """Bytes at most while the weights are filled; of this process's pieces, of the whole model, of its largest tensor."""
    fill, found = MeshStrategy.fill, []

    def watched(self: MeshStrategy, root: torch.nn.Module) -> None:
        assert all(weight.is_meta for weight in root.parameters())
        with Live() as live:
            fill(self, root)
        pieces = [local(weight) for weight in root.parameters()]
        with torch.device("meta"):
            sizes = [weight.numel() * pieces[0].element_size() for weight in job.model.build().parameters()]
        found.append((live.most, sum(piece.numel() * piece.element_size() for piece in pieces), sum(sizes), max(sizes)))

    MeshStrategy.fill = watched
    try:
        fit(job, prepared(job), folder, Memory(), Notes())
    finally:
        MeshStrategy.fill = fill
    return found[0]


@pytest.mark.parametrize("layout", ["zero3", "pp"])
def test_a_process_holds_its_pieces_and_one_tensor(tmp_path: Path, layout: str) -> None:
    """While weights are drawn, and while they are read from a checkpoint."""
    size, mesh = LAYOUTS[layout]
    large = {"model__dim": 64, "model__ffn__hidden": 256, "model__n_layers": 6, "model__head": Lm(tied=False)}
    job = make(tmp_path, mesh, trainer__max_steps=1, trainer__sample=False, **large)
    for name, start in (("drawn", None), ("read", str(tmp_path / "drawn"))):
        for most, pieces, whole, largest in pool.run(size, filling, replace(job, init=start), tmp_path / name):
            assert pieces < 0.6 * whole
            assert pieces <= most <= pieces + 2 * largest
