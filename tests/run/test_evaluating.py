"""The held-out loss while training (llmfactory.run.evaluating)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_job import prepared, toy_job, train

from llmfactory.data.pack.spec import Concat, Document


@pytest.mark.parametrize("pack", [Concat(), Concat(isolate=False), Document()], ids=["isolated", "plain", "document"])
def test_is_the_mean_over_every_target_once(tmp_path: Path, pack: Any) -> None:
    """By plain cross-entropy on the model that is handed back after the step."""
    job = toy_job(
        tmp_path, pack=pack, trainer__max_steps=2, trainer__eval_every=2, trainer__eval_rows=None, trainer__batch_size=3
    )
    fitted, tracker = train(job, tmp_path / "run")
    rows = pack.build(prepared(job).held_out, job.data.seq_len)
    total, count = 0.0, 0
    for number in range(len(rows)):
        batch = rows.read(torch.tensor([number]).numpy())
        with torch.no_grad():
            logits = fitted.model.head(fitted.model(batch["tokens"], fitted.model.context(batch, rows.isolated)))
        total += torch.nn.functional.cross_entropy(logits[0].double(), batch["labels"][0], reduction="sum").item()
        count += int((batch["labels"] != -100).sum())
    assert tracker.rows[2]["held_out_loss"] == pytest.approx(total / count, rel=1e-5)
    assert count == rows.targets


def test_no_held_out_rows(tmp_path: Path) -> None:
    fitted, tracker = train(toy_job(tmp_path, data__held_out=0.0), tmp_path / "run")
    assert (fitted.best_loss, fitted.best_step) == (None, None)
    assert not any("held_out_loss" in row for row in tracker.rows.values())


def test_does_not_touch_the_training(tmp_path: Path) -> None:
    """Dropout is off in it and on again after it, and it draws no random number."""
    _, often = train(toy_job(tmp_path, model__dropout=0.2, trainer__eval_every=1), tmp_path / "often")
    _, never = train(toy_job(tmp_path, model__dropout=0.2, trainer__eval_every=None), tmp_path / "never")
    assert [row["loss"] for row in often.rows.values()] == [row["loss"] for row in never.rows.values()]


def test_looks_when_and_at_what_it_is_told(tmp_path: Path) -> None:
    """Every `eval_every` steps, at `eval_rows` rows: fewer rows give another mean."""
    losses = {}
    for rows in (1, None):
        job = toy_job(tmp_path, trainer__max_steps=6, trainer__eval_every=2, trainer__eval_rows=rows)
        _, tracker = train(job, tmp_path / f"run {rows}")
        losses[rows] = {step: row["held_out_loss"] for step, row in tracker.rows.items() if "held_out_loss" in row}
        assert sorted(losses[rows]) == [2, 4, 6]
    assert losses[1] != losses[None]
