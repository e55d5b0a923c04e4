"""Small models keep what makes an architecture itself."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.config.register import options
from llmfactory.config.spec import Job
from llmfactory.config.toy import toy
from llmfactory.core.errors import ConfigError
from llmfactory.core.spec import walk
from llmfactory.model.spec import ModelSpec, TowerSpec


def stacks(model: ModelSpec) -> list[TowerSpec]:
    """The model's stacks of blocks with attention: itself, or those within it."""
    return [part for _, part in walk(model) if isinstance(part, TowerSpec)]


@functools.cache
def both(name: str) -> tuple[Job, Job]:
    """The preset whole and small."""
    line = [f"model={name}", "stage=describe"]
    return compose_job(line).job, compose_job([*line, "toy=true"]).job


@pytest.mark.parametrize("name", options("model"))
def test_sizes(name: str) -> None:
    full, small = both(name)
    assert small.model.vocab_size <= 512
    assert small.data.seq_len <= small.model.max_positions <= 64
    assert type(small.model) is type(full.model)


@pytest.mark.parametrize("name", options("model"))
def test_ratios(name: str) -> None:
    full, small = (job.model for job in both(name))
    for a, b in zip(stacks(full), stacks(small), strict=True):
        wide, narrow = getattr(a, "dim", full.dim), getattr(b, "dim", small.dim)
        assert type(a.attention) is type(b.attention)
        shared = [getattr(stack.attention, "n_kv_heads", None) for stack in (a, b)]
        assert (shared[0] is None) == (shared[1] is None)
        if shared[0] is not None:
            assert b.attention.n_heads / shared[1] == a.attention.n_heads / shared[0]
        assert b.ffn.hidden / narrow == pytest.approx(a.ffn.hidden / wide, abs=0.5 / narrow)
        assert b.attention.head_width(narrow) >= 2
        assert b.n_layers == max(2, len(b.pattern))
        assert b.repeats() == 1 if a.repeats() == 1 else b.repeats() == 2
        assert type(a.norm) is type(b.norm)
        assert narrow <= max(128, 2 * b.attention.n_heads)
    if hasattr(full, "head"):
        width = {"width": small.head.width} if hasattr(full.head, "width") else {}
        assert dataclasses.replace(full.head, **width) == small.head


def test_pure_and_done_once() -> None:
    job = compose_job(["model=llama3_8b"]).job
    before = repr(job)
    small = toy(job)
    assert repr(job) == before
    assert toy(small) == small


def test_a_small_vocabulary_stays() -> None:
    job = compose_job(["data/tokenizer=bytes", "model.vocab_size=257", "toy=true"]).job
    assert job.model.vocab_size == 257


def test_ids_of_a_given_tokenizer_stay() -> None:
    job = compose_job(["data/tokenizer=hf_file", "data.tokenizer.file=t.json", "toy=true"]).job
    assert job.model.vocab_size == 4096


def test_what_the_command_line_says_itself_stays() -> None:
    job = compose_job(["model=llama3_8b", "toy=true", "model.n_layers=5", "data.seq_len=48"]).job
    assert (job.model.n_layers, job.data.seq_len) == (5, 48)
    assert job.model.dim <= 128
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.vocab_size = 4000"):
        compose_job(["data.tokenizer.vocab_size=4000", "toy=true"])
    with pytest.raises(ConfigError, match=r"model\.attention\.n_heads"):
        compose_job(["toy=true", "model.attention.n_heads=7"])


def test_a_tokenizer_is_made_to_fit(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    option = "# Mine.    llmfactory\ndefaults:\n  - /schema/data/tokenizer/byte_bpe@_here_\n  - _self_\nvocab_size: 4000\n"
    (tmp_path / "data" / "tokenizer").mkdir()
    (tmp_path / "data" / "tokenizer" / "mine.yaml").write_text(option)
    job = compose_job(["data/tokenizer=mine", "toy=true"], [tmp_path]).job
    assert job.data.tokenizer.vocab_size == job.model.vocab_size
