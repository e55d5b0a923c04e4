"""Elastic weight consolidation: the old task is kept where plain training loses it, under every layout and after a break alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pool
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from toy_job import prepared
from two_tasks import learned, loss, new_job, old_job, train

from llmfactory.checkpoint import io
from llmfactory.config.compose import compose_job
from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.parallel.mesh import World
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.stage.anchor.ewc import EwcAnchor
from llmfactory.stage.anchor.spec import Ewc, None_, fisher_of
from llmfactory.stage.initial import load_model
from llmfactory.stage.rows import task_rows
from llmfactory.stage.spec import Fisher
from llmfactory.stage.training import Root

SLOW = {"optim__lr": 3e-3, "trainer__max_steps": 60}
KEPT, LOST = 0.3, 3.0
"""Nats per token that the old task may lose with EWC, and that it loses at least without."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ewc")
    learned(found)
    return found


def test_the_old_task_is_kept(folder: Path) -> None:
    old, new = old_job(folder), new_job(folder, None_(), **SLOW)
    before, _ = train(old, folder / "old")  # it has ended already
    known, unknown = loss(before, old), loss(before, new)
    plain, _ = train(new, folder / "plain")
    held, logged = train(new_job(folder, Ewc(strength=1e4), **SLOW), folder / "held")
    assert loss(plain, old) > known + LOST
    assert loss(held, old) < known + KEPT
    assert loss(held, new) < unknown - 2, "and the new one is learned"
    assert 0 < logged.rows[60]["anchor_penalty"] < 2


def test_fisher_is_the_mean_of_squares(folder: Path) -> None:
    """Of each row's gradient, over the number of targets, by a loop of its own."""
    job = old_job(folder)
    model = load_model(job, io.find(folder / "old"), job.precision.build("cpu"), World(torch.device("cpu")))
    rows = task_rows(job, job.stage.objective.build(), prepared(job), "train")  # type: ignore[attr-defined]
    numbers = torch.arange(64) * len(rows) // 64
    squares, targets = torch.zeros_like(model.embedding.weight), 0  # type: ignore[union-attr,arg-type]
    root = Root(model.requires_grad_(True), job.stage.objective.build(), rows.isolated).eval()  # type: ignore[attr-defined]
    for number in numbers:
        batch = rows.read(number[None].numpy())
        model.zero_grad()
        root(batch)["loss"].backward()
        squares += model.embedding.weight.grad.square()  # type: ignore[union-attr,operator]
        targets += int((batch["labels"] != IGNORE).sum())
    with safe_open(folder / "old" / "fisher.safetensors", "pt") as file:
        torch.testing.assert_close(file.get_tensor("embedding.weight"), squares / targets, rtol=1e-5, atol=1e-12)


EXACT = {"precision": Fp64(), "optim__clip_norm": 0.5, "trainer__max_steps": 6, "trainer__batch_size": 7}


def numbers(job: Any, folder: Path) -> tuple[dict[int, dict[str, float]], dict[str, torch.Tensor]]:
    fitted, tracker = train(job, folder)
    rows = {step: {k: v for k, v in row.items() if k != "tokens_per_second"} for step, row in tracker.rows.items()}
    return rows, {name: p.detach().clone() for name, p in fitted.model.named_parameters()}


def assert_same(ours: Any, reference: Any) -> None:
    assert [row["anchor_penalty"] for row in reference[0].values()][-1] > 0
    for step, row in reference[0].items():
        assert ours[0][step] == pytest.approx(row, rel=1e-9)
    for name, weight in reference[1].items():
        assert (ours[1][name] - weight).norm() <= 1e-9 * weight.norm(), name


LAYOUTS = {
    "zero3": (3, Mesh(dp_shard=None)),
    "tensors": (4, Mesh(tp=2, dp_replicate=None, sequence_parallel=True)),
    "pipeline": (2, Mesh(pp=2)),
}


def test_it_is_the_same_in_pieces(folder: Path, tmp_path: Path) -> None:
    anchor = Ewc(strength=1e3)
    reference = numbers(new_job(folder, anchor, **EXACT), tmp_path / "whole")
    assert_same(numbers(new_job(folder, anchor, **EXACT, trainer__micro_batch_size=2), tmp_path / "pieces"), reference)
    numbers(new_job(folder, anchor, **{**EXACT, "trainer__max_steps": 3}), tmp_path / "broken")
    rest = numbers(new_job(folder, anchor, **EXACT), tmp_path / "broken")
    assert rest[0] == {step: row for step, row in reference[0].items() if step > 3}, "a run that goes on holds the old weights"
    assert all(torch.equal(rest[1][name], weight) for name, weight in reference[1].items())


@pytest.mark.dist
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_same_under_layouts(folder: Path, tmp_path: Path, layout: str) -> None:
    world, mesh = LAYOUTS[layout]
    reference = numbers(new_job(folder, Ewc(strength=1e3), **EXACT), tmp_path / "whole")
    job = new_job(folder, Ewc(strength=1e3), **EXACT, trainer__micro_batch_size=2, parallel=mesh)
    for result in pool.run(world, numbers, job, tmp_path / "parts"):
        assert_same(result, reference)


def test_what_was_measured_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = io.find(folder / "old")
    path = tmp_path / "f.safetensors"
    with pytest.raises(UserError, match=r"cannot be read: .*stage=fisher"):
        EwcAnchor(1.0, path, checkpoint)
    save_file({"w": torch.ones(2)}, path, {"checkpoint": "step_00000007"})
    with pytest.raises(UserError, match="measured at the checkpoint step_00000007, and this run starts from"):
        EwcAnchor(1.0, path, checkpoint)
    for tensors, message in (
        ({"v": torch.ones(2)}, "nothing of w"),
        ({"w": torch.ones(3)}, r"w is \[3\], and \[2\] in the model"),
        ({"w": torch.tensor([1.0, -1.0])}, "negative"),
    ):
        save_file(tensors, path, {"checkpoint": checkpoint.name})
        with pytest.raises(UserError, match=message):
            EwcAnchor(1.0, path, checkpoint).importance("w", torch.nn.Parameter(torch.zeros(2)))


def test_the_file_stands_with_the_run(folder: Path, tmp_path: Path) -> None:
    assert fisher_of(folder / "old") == folder / "old" / "fisher.safetensors"
    assert fisher_of(io.find(folder / "old")) == folder / "old" / "fisher.safetensors"
    (tmp_path / "model.gguf").touch()
    assert fisher_of(tmp_path / "model.gguf") == tmp_path / "fisher.safetensors"
    line = ["stage/anchor=ewc", f"init={folder}/old"]
    compose_job(line)
    (folder / "old" / "fisher.safetensors").rename(folder / "old" / "elsewhere")
    try:
        with pytest.raises(ConfigError, match=r"run stage=fisher init=.* first"):
            compose_job(line)
        compose_job([*line, f"stage.anchor.file={folder}/old/elsewhere"])
    finally:
        (folder / "old" / "elsewhere").rename(folder / "old" / "fisher.safetensors")
    with pytest.raises(UserError, match=r"there is no folder .*/nowhere"):
        Fisher(path=f"{tmp_path}/nowhere/f.safetensors").build().run(old_job(folder, init=str(folder / "old")), None)
