"""Which steps make a row of metrics."""

from __future__ import annotations

from pathlib import Path

from toy_job import toy_job, train

from llmfactory.run.watching import Watching


def test_sparse_logging(tmp_path: Path) -> None:
    """The first, every third, the last; and what is logged does not depend on how often."""
    _, dense = train(toy_job(tmp_path), tmp_path / "dense")
    _, sparse = train(
        toy_job(tmp_path, trainer__log_every=3, trainer__max_steps=7, trainer__eval_every=None), tmp_path / "sparse"
    )
    assert list(sparse.rows) == [1, 3, 6, 7]
    assert all(sparse.rows[step]["loss"] == dense.rows[step]["loss"] for step in sparse.rows)


def test_reads_nothing_between_rows(tmp_path: Path, monkeypatch) -> None:
    """The device is asked for numbers at the steps that are logged, and at no other."""
    asked = []
    plain = Watching._log
    monkeypatch.setattr(
        Watching, "_log", lambda self, progress, stage: (asked.append(progress.step), plain(self, progress, stage))
    )
    train(toy_job(tmp_path, trainer__log_every=4, trainer__eval_every=None), tmp_path / "run")
    assert asked == [1, 4, 8]
