"""The published training settings: each file of conf/experiment that repeats one composes to what was published, is planned, and
trains its model made small."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from toy_job import Memory, Notes, write_text

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError
from llmfactory.core.spec import stem, walk
from llmfactory.run.fit import fit
from llmfactory.stage.choice import question_of
from llmfactory.stage.plan import reckoned
from llmfactory.stage.rows import read_data

K, M, B = 1e3, 1e6, 1e9
PUBLISHED: dict[str, tuple[float, float, float, float | None, float | None]] = {
    "gpt3_175b": (32 * K, 3.2 * M, 6e-5, 0.1, 1.0),
    "opt_175b": (2 * M, 2 * M, 1.2e-4, 0.1, 1.0),
    "palm_540b": (1 * M, 4 * M, 1e-2, 1e-2, 1.0),
    "bloom_176b": (192 * 2048, 4 * M, 6e-5, 0.1, 1.0),
    "mt_nlg_530b": (64 * K, 3.75 * M, 5e-5, 0.1, 1.0),
    "gopher_280b": (3 * M, 6 * M, 4e-5, 0.0, 0.25),
    "chinchilla_70b": (1.5 * M, 3 * M, 1e-4, None, 1.0),
    "galactica_120b": (2 * M, 2 * M, 7e-6, 0.1, 1.0),
    "jurassic1_178b": (32 * K, 3.2 * M, 6e-5, None, None),
    "llama_65b": (4 * M, 4 * M, 1.5e-4, 0.1, 1.0),
    "glm_130b": (0.4 * M, 8.25 * M, 8e-5, 0.1, 1.0),
    "t5_11b": (1 * M, 1 * M, 1e-2, 0.0, None),
}
"""Tokens of the first step and of a full one, rate, weight decay (at the peak rate), clipping; None: not published."""
PARTLY = ("pangu_alpha", "lamda_137b")
"""Of which little is."""
NAMES = (*PUBLISHED, *PARTLY)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "optimization.md"
TOKENS: dict[str, tuple[float, float]] = {
    "gpt3_175b": (375 * M, 300 * B),
    "opt_175b": (2000 * 2**21, 300 * B),
    "bloom_176b": (375 * M, 366 * B),
    "mt_nlg_530b": (1 * B, 270 * B),
    "gopher_280b": (1500 * 1536 * 2048, 300 * B),
    "chinchilla_70b": (1500 * 768 * 2048, 1.4e12),
    "galactica_120b": (1.1 * B, 450 * B),
    "llama_65b": (2000 * 2**22, 1.4e12),
    "glm_130b": (2 * B, 400 * B),
}
"""Of the warm-up and of the whole run."""


@functools.cache
def composed(name: str, *more: str) -> Job:
    return compose_job([f"experiment={name}", *more]).job


@pytest.mark.parametrize("name", PUBLISHED)
def test_is_what_was_published(name: str) -> None:
    first, full, lr, decay, clip = PUBLISHED[name]
    job = composed(name)
    sizes = job.trainer.sizes(job.data.seq_len)
    assert sizes.rows(0) * job.data.seq_len == pytest.approx(first, rel=0.05)
    assert sizes.rows(10**8) * job.data.seq_len == pytest.approx(full, rel=0.05)
    assert job.optim.lr == pytest.approx(lr)
    if decay is not None:
        assert job.optim.weight_decay == decay
    if clip is not None:
        assert job.optim.clip_norm == clip


@pytest.mark.parametrize("name", TOKENS)
def test_steps_are_the_published_tokens(name: str) -> None:
    """Through the ramp."""
    job = composed(name)
    sizes, warmup = job.trainer.sizes(job.data.seq_len), job.optim.schedule.warmup(job.trainer.max_steps)
    found = [sizes.before(steps) * job.data.seq_len for steps in (warmup, job.trainer.max_steps)]
    assert found == pytest.approx(TOKENS[name], rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_is_planned(name: str) -> None:
    job = composed(name, "stage=plan", "hardware=a100_80", "precision=bf16_mixed")
    question = question_of(job)
    assert question.work.tokens == job.trainer.batch_size * job.data.seq_len
    seen = reckoned(job, question)
    assert seen.seconds > 0
    assert not seen.fits


def test_a_run_may_go_on_at_the_floor() -> None:
    """`goes_on`, of every schedule that ends somewhere."""
    late = ["optim/schedule=cosine", "optim.schedule.horizon=500", "trainer.max_steps=700"]
    with pytest.raises(ConfigError, match="would stay at its floor for the last 200"):
        compose_job(late)
    schedule = compose_job([*late, "optim.schedule.goes_on=true"]).job.optim.schedule.build(700)
    assert schedule(600) == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="unless a horizon is given"):
        compose_job(["optim/schedule=linear", "optim.schedule.goes_on=true"])


QUICK = ("gpt3_175b", "palm_540b", "t5_11b")
TRAINED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", TRAINED)
def test_trains_made_small(name: str, tmp_path: Path) -> None:
    data = ["data=text", f"data.source.files=[{write_text(tmp_path)}]", "data.source.split_on=---", "data/tokenizer=bytes"]
    data += [f"data.cache={tmp_path}/cache", "data.workers=1", "data.held_out=0"]
    short = ["toy=true", "trainer.max_steps=2", "trainer.eval_every=null", "trainer.keep_best=false", "trainer.save_every=null"]
    job = composed(name, *data, *short, "trainer.micro_batch_size=null", "trainer.log_every=1", "trainer.device=cpu")
    job = replace(job, optim=replace(job.optim, lr=0.1))
    tracker = Memory()
    fitted = fit(job, read_data(job, None, job.stage.objective.specials()), tmp_path / "run", tracker, Notes())
    assert fitted.step == 2
    assert all(row["loss"] < 10 for row in tracker.rows.values())
    assert tracker.rows[1]["loss"] != tracker.rows[2]["loss"]


def amount(tokens: float) -> str:
    return f"{tokens / M:.3g}M" if tokens >= 0.95 * M else f"{tokens / K:.3g}K"


def line(name: str) -> str:
    """A row of the table in the docs."""
    job = composed(name)
    sizes, schedule, optim = job.trainer.sizes(job.data.seq_len), job.optim.schedule, job.optim
    first, full = (amount(sizes.rows(step) * job.data.seq_len) for step in (0, 10**8))
    dropout = max([getattr(part, "dropout", 0.0) for _, part in walk(job.model)], default=0.0)
    cells = [
        f"`{name}`",
        full if first == full else f"{first} to {full}",
        f"{job.data.seq_len:,}",
        f"{optim.lr:.2g}",
        f"{schedule.warmup(job.trainer.max_steps):,}",
        stem(type(schedule)),
        f"{job.trainer.max_steps:,}",
        stem(type(optim)),
        stem(type(job.precision)),
        f"{optim.weight_decay:g}",
        "none" if optim.clip_norm is None else f"{optim.clip_norm:g}",
        f"{dropout:g}",
    ]
    return "| " + " | ".join(cells) + " |"


def test_the_table_of_the_docs_is_what_the_files_say() -> None:
    found = re.findall(r"^\| `\w+` \| [\d.]+[KM].*\|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == [line(name) for name in sorted(NAMES)]
