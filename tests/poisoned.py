"""A small job with documents of noise among its text: what a guard is for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.data.pack.spec import Document
from llmfactory.data.prepared import Prepared
from llmfactory.data.source.spec import Files
from llmfactory.guard.spec import GuardSpec
from llmfactory.optim.schedule.spec import Cosine
from llmfactory.optim.spec import Muon
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


LETTERS, LENGTH = 8, 30
NEXT = 0.7
"""Share of letters that are followed by the next one of the alphabet."""


def letters_job(folder: Path, guard: GuardSpec, count: int = 1000, **changes: Any) -> Job:
    """Rows are whole documents, which are soon learned: then the loss is flat, and what a few steps do to it shows. No clipping."""
    path = folder / "letters.txt"
    if not path.exists():
        random = np.random.default_rng(0)
        documents = []
        for _ in range(count):
            skips = np.where(random.random(LENGTH) < NEXT, 1, random.integers(LETTERS, size=LENGTH))
            documents.append("".join(chr(ord("a") + one) for one in skips.cumsum() % LETTERS))
        path.write_text("\n---\n".join(documents) + "\n")
    settings: dict[str, Any] = {
        "trainer__max_steps": 60,
        "trainer__batch_size": 8,
        "trainer__save_every": 4,
        "data__source": Files(files=[str(path)], split_on="---"),
        "optim": Muon(lr=0.04, schedule=Cosine(warmup_steps=2, horizon=66), clip_norm=None),
    }
    return poisoned_job(folder, guard, **settings | changes)


def repeating(data: Prepared, documents: Sequence[int]) -> Prepared:
    """Data in which some documents are one letter over and over, as from a broken crawl."""
    tokens, offsets = data.train.tokens.copy(), data.train.offsets
    for number in documents:
        tokens[int(offsets[number]) + 1 : int(offsets[number + 1])] = ord("a")
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
