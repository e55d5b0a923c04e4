"""A small real job for the tests of launchers, and its numbers in a single process."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_job import write_text


def overrides(folder: Path) -> list[str]:
    """Three steps in float64, so that sums in another order make no difference."""
    return [
        *("toy=true", "data=text", f"data.source.files=[{write_text(folder)}]", "data.source.split_on=---", "precision=fp64"),
        *("data/tokenizer=bytes", "data.seq_len=32", "data.held_out=0.2", f"data.cache={folder}/cache", "data.workers=1"),
        *("trainer.max_steps=3", "trainer.batch_size=4", "trainer.eval_every=3", "trainer.save_every=2", "trainer.log_every=1"),
        *("trainer.sample=false", "trainer.device=cpu", "trainer.threads=1", "trainer.progress=false"),
        *("parallel.timeout_s=300", f"output_dir={folder}/outputs"),
    ]


def curve(folder: Path) -> list[list[float]]:
    """Loss, gradient norm and learning rate of each step."""
    with open(folder / "metrics.csv") as file:
        return [[float(row[name] or "nan") for name in ("loss", "grad_norm", "lr")] for row in csv.DictReader(file)]
