"""A small real job that learns from rewards: sort three digits, one token each, judged by whether they are sorted."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toy_job import Memory, Notes

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.run.fit import Fitted, fit
from llmfactory.stage.grader.grader import Answer
from llmfactory.stage.initial import checkpoint_of
from llmfactory.stage.rows import read_data

MODEL = ["model=llama_tiny", "model.vocab_size=260", "model.dim=32", "model.n_layers=1", "model.max_positions=32"]
MODEL += ["model/attention=gqa", "model.attention.n_heads=2", "model.ffn.hidden=64", "data/tokenizer=bytes"]
SMALL = [
    "data.seq_len=16",
    "data.workers=1",
    "optim/schedule=constant",
    "trainer.log_every=1",
    "trainer.sample=false",
    "trainer.threads=1",
]
PROMPTS = ["data=prompts", "data.form.chat=false", "data.form.max_tokens=16", "stage/grader=[exact_match]", "stage.max_tokens=5"]
QUIET = ["trainer.eval_every=null", "trainer.save_every=null", "trainer.keep_best=false", "trainer.device=cpu"]


def tasks(digits: str = "0123") -> list[tuple[str, str]]:
    """Every prompt with its answer, in random order."""
    found = [("".join(some) + "=", "".join(sorted(some))) for some in itertools.product(digits, repeat=3)]
    random.Random(0).shuffle(found)
    return found


def write_tasks(folder: Path) -> None:
    """The tasks as text to imitate, and as prompts."""
    lines = [{"prompt": prompt, "answer": answer} for prompt, answer in tasks()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": prompt + answer}) + "\n" for prompt, answer in tasks()))


def compose(folder: Path, *overrides: str) -> Job:
    if not (folder / "prompts.jsonl").exists():
        write_tasks(folder)
    begins = any(one.startswith("init=") for one in overrides)  # then model and tokenizer come along
    return compose_job(
        [*([] if begins else MODEL), *SMALL, *QUIET, f"data.cache={folder / 'cache'}", f"output_dir={folder}", *overrides]
    ).job


def imitating(folder: Path, *overrides: str) -> Job:
    files = f"data.source.files=[{folder / 'text.jsonl'}]"
    return compose(folder, "data=jsonl", files, "data/pack=document", "optim.lr=1e-2", "trainer.batch_size=16", *overrides)


def learning(folder: Path, stage: str, *overrides: str) -> Job:
    files = f"data.source.files=[{folder / 'prompts.jsonl'}]"
    return compose(folder, f"stage={stage}", *PROMPTS, files, "data.held_out=0.2", "optim.lr=3e-3", *overrides)


def train(job: Job, folder: Path, tracker: Memory | None = None, notes: Notes | None = None) -> tuple[Fitted, Memory]:
    tracker = tracker or Memory()
    begins = None if job.init is None else checkpoint_of(job, "starting")
    data = read_data(job, begins, job.stage.objective.specials())
    return fit(job, data, folder, tracker, notes or Notes()), tracker


def reward(answer: Answer) -> float:
    """How many digits are right, and a little for which tokens they are, so that few answers are judged alike."""
    return sum(map(str.__eq__, answer.text, answer.record["answer"])) + 0.1 * sum(answer.tokens) / 256


def column(tracker: Memory, name: str) -> list[float]:
    return [row[name] for row in tracker.rows.values() if name in row]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


Curve = dict[int, dict[str, Any]]


def curve(tracker: Memory) -> Curve:
    """Everything but times."""
    return {
        step: {name: repr(value) for name, value in row.items() if "second" not in name} for step, row in tracker.rows.items()
    }
