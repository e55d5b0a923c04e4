"""GPT-2's two files: the ids of the tokenizer that they were written from, and what is wrong with them by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import ByteBpe, Gpt2Files, Split
from llmfactory.data.tokenizer.tokenizer import Tokenizer, load


@pytest.fixture(scope="module")
def learned(corpus: list[str]) -> Tokenizer:
    return ByteBpe(split=Split.gpt2).build(500).make(corpus)


@pytest.fixture
def file(learned: Tokenizer, tmp_path: Path) -> Path:
    assert isinstance(learned, HfTokenizer)
    model = json.loads(learned.inner.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (tmp_path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "vocab.json"


def test_the_ids_are_those_of_the_one_that_wrote_them(file: Path, learned: Tokenizer, samples: list[str], tmp_path: Path) -> None:
    tokenizer = Gpt2Files(file=str(file)).build(1000).make(())
    assert tokenizer.encode_batch(samples) == learned.encode_batch(samples) == [tokenizer.encode(text) for text in samples]
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in samples)
    assert (tokenizer.end_id, tokenizer.vocab_size, tokenizer.lossless) == (learned.end_id, learned.vocab_size, True)
    tokenizer.save(tmp_path / "kept")
    assert load(tmp_path / "kept").encode_batch(samples) == tokenizer.encode_batch(samples)


def test_it_is_gpt2_s_own_tokenizer_in_transformers(file: Path, samples: list[str]) -> None:
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer(str(file), str(file.with_name("merges.txt")))
    ours = Gpt2Files(file=str(file)).build(1000).make(())
    texts = [text for text in samples if "<|" not in text]
    assert ours.encode_batch(texts) == [theirs.encode(text) for text in texts]


def test_other_names_and_further_tokens(file: Path, learned: Tokenizer) -> None:
    other = file.with_name("encoder.json")
    file.rename(other)
    file.with_name("merges.txt").rename(file.with_name("vocab.bpe"))
    made = Gpt2Files(file=str(other), special_tokens=["<turn>"], end_token="<turn>").build(1000).make(())
    assert made.encode("some words") == learned.encode("some words")
    assert made.end_id == made.specials()["<turn>"] == learned.vocab_size
    file.with_name("vocab.bpe").rename(file.with_name("mine"))
    named = Gpt2Files(file=str(other), merges=str(file.with_name("mine"))).build(1000).make(())
    assert named.encode("some words") == learned.encode("some words")
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*vocab.bpe"):
        Gpt2Files(file=str(other)).build(1000)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", "[1]", "is no vocab.json: it holds no mapping"),
        ("vocab.json", '{"a": "b"}', "is no vocab.json: it holds no mapping"),
        ("vocab.json", "{", "is no vocab.json"),
        ("vocab.json", '{"a": 0, "b": 0}', "two tokens have the same id"),
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt, line 2: 'a b c' is no merge"),
        ("merges.txt", "a 的\n", "does not belong to .*the merge 'a 的'"),
    ],
)
def test_what_is_wrong_is_named(file: Path, name: str, content: str, reason: str) -> None:
    file.with_name(name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        Gpt2Files(file=str(file)).build(1000)
