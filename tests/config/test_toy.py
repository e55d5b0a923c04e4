"""Small models keep what makes an architecture itself."""

from __future__ import annotations

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.config.register import options
from llmfactory.config.toy import toy
from llmfactory.core.errors import ConfigError


@pytest.mark.parametrize("name", options("model"))
def test_ratios(name: str) -> None:
    full = compose_job([f"model={name}"]).job
    small = compose_job([f"model={name}", "toy=true"]).job
    a, b = full.model, small.model
    assert (a.attention.n_kv_heads is None) == (b.attention.n_kv_heads is None)
    if a.attention.n_kv_heads is not None:
        assert b.attention.n_heads / b.attention.n_kv_heads == a.attention.n_heads / a.attention.n_kv_heads
    assert b.ffn.hidden / b.dim == pytest.approx(a.ffn.hidden / a.dim, abs=0.5 / b.dim)
    assert b.dim % b.attention.n_heads == 0
    assert b.attention.head_width(b.dim) % 2 == 0
    assert b.n_layers == 2
    assert 300 <= b.vocab_size <= 512
    assert small.data.seq_len <= b.max_positions <= 64
    assert type(a.norm) is type(b.norm)
    assert a.head == b.head
    assert b.dim <= 128


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
