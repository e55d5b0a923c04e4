"""A step asks its device for no number: whatever is decided in it is decided there, and read where metrics are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from poisoned import poisoned_job, run
from torch.utils._python_dispatch import TorchDispatchMode
from toy_job import prepared

from llmfactory.guard.spec import GuardSpec, None_, Skip
from llmfactory.parallel.mesh import World
from llmfactory.parallel.place import Place
from llmfactory.parallel.strategy import MeshStrategy

WAITS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select")
"""What a GPU would have to be waited for."""


class Waiting(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in WAITS:
            self.found.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_it_counts() -> None:
    with Waiting() as waiting:
        assert torch.ones(2).sum().item() == 2
        assert torch.ones(1) > 0
    assert waiting.found == ["aten::_local_scalar_dense"] * 2


@pytest.mark.parametrize("guard", [None_(), Skip(window=8, least=4)], ids=lambda one: type(one).__name__)
def test_no_step_waits_for_its_device(guard: GuardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first product to the optimizer's step, as it is made on a GPU: the verdict goes to the optimizer's kernel."""
    make, found, steps = MeshStrategy.optimizer_step, [], []

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:
        with Waiting() as waiting:
            loss = make(self, *arguments, **options)
        found.extend(waiting.found)
        steps.append(self._step)
        return loss

    monkeypatch.setattr(MeshStrategy, "optimizer_step", watched)
    monkeypatch.setattr(MeshStrategy, "_defers", lambda self, optimizer: True)
    job = poisoned_job(tmp_path, guard, trainer__max_steps=8, trainer__save_every=None)
    run(job, tmp_path / "run", prepared(job))
    assert len(steps) == 8
    assert found == []


def test_lightning_tells_nobody_anything_at_each_step() -> None:
    """Where it knows of several processes, its loop broadcasts at every step whether one was sent a signal, and reads the result."""
    assert Place(World(torch.device("cpu"), rank=1, size=2)).world_size() == 1
