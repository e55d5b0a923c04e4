"""Training on a mixture: what is logged of each source, and the same samples after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_job import prepared, toy_job, train, write_text

from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError
from llmfactory.data.loader import held_out_batches, held_out_by_source
from llmfactory.data.mix.spec import Curriculum
from llmfactory.data.pack.rows import shares
from llmfactory.data.pack.spec import BestFit, Concat, Grouped, PackSpec
from llmfactory.data.source.spec import Files
from llmfactory.data.spec import Mixture
from llmfactory.data.tokenizer.spec import Bytes
from llmfactory.objective.spec import Masked
from llmfactory.stage.rows import task_rows

MIX = Curriculum(at=[0.0, 1.0], weights={"long": [3.0, 1.0], "short": [1.0, 3.0]}, horizon=8)


def mixture_job(folder: Path, pack: PackSpec | None = None, **changes: Any) -> Job:
    (folder / "short").mkdir(exist_ok=True)
    sources = {
        "long": Files(files=[write_text(folder)], split_on="---"),
        "short": Files(files=[write_text(folder / "short", 30)], split_on="---"),
    }
    data = Mixture(
        sources=sources,
        mix=MIX,
        tokenizer=Bytes(),
        pack=pack or Concat(),
        seq_len=32,
        held_out=0.3,
        cache=str(folder / "cache"),
        workers=1,
    )
    return toy_job(folder, data=data, **changes)


def rows_of(job: Job, part: str) -> Any:
    return task_rows(job, job.stage.objective.build(), prepared(job), part)  # type: ignore[attr-defined]


@pytest.mark.parametrize("pack", [Concat(), BestFit()], ids=["concat", "best_fit"])
def test_sources_are_logged(tmp_path: Path, pack: PackSpec) -> None:
    job = mixture_job(tmp_path, pack, trainer__eval_rows=None)
    fitted, tracker = train(job, tmp_path / "run")
    rows = rows_of(job, "train")
    order = rows.order(job.seed)
    for step, row in tracker.rows.items():
        for name, count in zip(("long", "short"), order.drawn(step * 8).tolist(), strict=True):
            assert row[f"epochs/{name}"] == count / len(rows.sources[name])
    last = tracker.rows[8]
    assert fitted.drawn == {key: last[key] for key in last if key.startswith(("tokens/", "epochs/"))}
    assert sum(last[f"tokens/{name}"] for name in ("long", "short")) == pytest.approx(8 * 8 * 32, rel=0.1)
    held_out = rows_of(job, "held_out")
    counts = {name: part.targets for name, part in held_out.sources.items()}
    total = sum(last[f"held_out_loss/{name}"] * count for name, count in counts.items()) / sum(counts.values())
    assert last["held_out_loss"] == pytest.approx(total, rel=1e-5)
    assert last["held_out_loss/long"] != last["held_out_loss/short"]


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    _, whole = train(mixture_job(tmp_path, trainer__max_steps=8), tmp_path / "whole")
    train(mixture_job(tmp_path, trainer__max_steps=4), tmp_path / "broken")
    _, rest = train(mixture_job(tmp_path, trainer__max_steps=8), tmp_path / "broken")
    for step in (5, 8):
        for key in ("loss", "tokens/short", "epochs/long"):
            assert rest.rows[step][key] == whole.rows[step][key]


@pytest.mark.parametrize("limit", [None, 7])
@pytest.mark.parametrize("world", [1, 3])
def test_held_out_rows_by_source_are_the_same_rows(tmp_path: Path, limit: int | None, world: int) -> None:
    rows = rows_of(mixture_job(tmp_path), "held_out")
    every = torch.cat([batch["tokens"] for batch in held_out_batches(rows, batch_size=4, limit=limit)])
    found: dict[str, list[Any]] = {"long": [], "short": []}
    for rank in range(world):
        for name, batches in held_out_by_source(rows, batch_size=4, limit=limit, rank=rank, world=world).items():
            found[name] += [batch["tokens"][(batch["segments"] > 0).any(1)] for batch in batches]
    both = torch.cat([batch for batches in found.values() for batch in batches])
    assert sorted(both.tolist()) == sorted(every.tolist())
    assert all(len(batches) for batches in found.values())
    assert list(held_out_by_source(rows.sources["long"], batch_size=4)) == [""]


def test_what_packing_costs(tmp_path: Path) -> None:
    mixed = rows_of(mixture_job(tmp_path, BestFit()), "train")
    parts = list(mixed.sources.values())
    batch = [part.read(torch.arange(len(part)).numpy())["segments"] for part in parts]
    padding = sum(int((one == 0).sum()) for one in batch) / sum(one.numel() for one in batch)
    assert shares(mixed)["padding"] == pytest.approx(padding)
    assert 0 < shares(mixed)["cut_documents"] < 1


def test_grouped_rows_are_trained_on_and_not_corrupted(tmp_path: Path) -> None:
    job = toy_job(tmp_path, pack=Grouped(group=8, multiple=8))
    _, tracker = train(job, tmp_path / "run")
    assert tracker.rows[8]["loss"] < tracker.rows[1]["loss"]
    with pytest.raises(ConfigError, match="data/pack=document"):
        task_rows(job, Masked().build(), prepared(job), "train")
