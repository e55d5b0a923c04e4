"""A small job with documents of noise among its text: what a guard is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.data.pack.spec import Document
from llmfactory.data.prepared import Prepared
from llmfactory.guard.spec import GuardSpec
from llmfactory.run.fit import Fitted, fit

NOISE = (11, 37)
"""Documents of the training part that are noise."""
STEPS = 44
WATCH: dict[str, Any] = {"window": 10, "least": 6, "loss_z": 10.0, "norm_z": None}


def poisoned_job(folder: Path, guard: GuardSpec, **changes: Any) -> Job:
    """Rows are whole documents or pieces of one; the poisoned ones come by after step 6 only by chance of the seed."""
    settings: dict[str, Any] = {
        "trainer__max_steps": STEPS,
        "trainer__batch_size": 4,
        "trainer__eval_every": None,
        "trainer__keep_best": False,
        "trainer__save_every": 5,
        "trainer__keep_last": 3,
        "model__vocab_size": 258,
    }
    return toy_job(folder, pack=Document(), guard=guard, **settings | changes)


def poisoned(job: Job) -> Prepared:
    """Its data, with other tokens in some documents: bytes that stand nowhere else, as from a broken file."""
    data = prepared(job)
    tokens, offsets = data.train.tokens.copy(), data.train.offsets
    for number in NOISE:
        inside = slice(int(offsets[number]) + 1, int(offsets[number + 1]))
        tokens[inside] = 128 + (np.arange(inside.stop - inside.start) * 37 + number) % 128
    data.train.tokens = tokens
    return data


def run(
    job: Job, folder: Path, data: Prepared | None = None, tracker: Memory | None = None, notes: Notes | None = None
) -> Fitted:
    folder.mkdir(parents=True, exist_ok=True)
    return fit(job, data or poisoned(job), folder, tracker or Memory(), notes or Notes())


def held_out(fitted: Fitted) -> float:
    assert fitted.supply is not None
    measured = fitted.supply.measure(None)
    assert measured is not None
    return measured.loss
