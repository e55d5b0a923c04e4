"""Whole words: what has an id, what becomes the unknown word, and what is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.tokenizer.spec import ByteBpe, Bytes, WordLevel
from llmfactory.data.tokenizer.tokenizer import Tokenizer, load
from llmfactory.data.tokenizer.word_level import UNKNOWN

TEXT = ["The cat saw the dog.\n\nthe cat  (a cat) ran!", "the dog ran off... the end"]


def made(**changes: object) -> Tokenizer:
    return WordLevel(**{"min_count": 2, **changes}).build(50).make(TEXT)


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([number]) for number in tokenizer.encode(text)]


def test_frequent_words_have_ids() -> None:
    tokenizer = made()
    assert words(tokenizer, "the cat, the end.") == ["the", "cat", UNKNOWN, "the", UNKNOWN, UNKNOWN]
    assert tokenizer.vocab_size == 2 + len({"the", "cat", "dog", "ran"})
    assert words(made(min_count=1), "The end... off") == ["The", "end", "...", "off"]


def test_the_most_frequent_come_first() -> None:
    assert words(made(vocab_size=4, min_count=1), "the cat saw") == ["the", "cat", UNKNOWN]
    with pytest.raises(UserError, match="60 ids"):
        WordLevel(vocab_size=60).build(50)


def test_capital_letters_can_be_read_as_small_ones() -> None:
    tokenizer = made(lowercase=True)
    assert tokenizer.encode("THE Cat") == tokenizer.encode("the cat")
    assert made().encode("The cat") != made().encode("the cat")


def test_the_end_is_no_word_and_a_text_about_it_is_not_it(tmp_path: Path) -> None:
    tokenizer = made()
    assert tokenizer.end_id not in tokenizer.encode("<|endoftext|> the end")
    tokenizer.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert again.encode(TEXT[0]) == tokenizer.encode(TEXT[0])
    assert (again.end_id, again.vocab_size, again.lossless) == (tokenizer.end_id, tokenizer.vocab_size, False)


def test_only_tokenizers_that_give_the_text_back_tell_bits_per_byte() -> None:
    assert not made().lossless
    assert ByteBpe(vocab_size=300).build(300).make(TEXT).lossless
    assert Bytes().build(257).make(TEXT).lossless


def test_what_it_depends_on() -> None:
    prints = {made_by.fingerprint() for made_by in (WordLevel(**{key: value}).build(50) for key, value in CHANGES.items())}
    assert len(prints | {WordLevel().build(50).fingerprint()}) == len(CHANGES) + 1
    with pytest.raises(ConfigError, match="min_count"):
        WordLevel(min_count=0)


CHANGES = {"vocab_size": 20, "min_count": 3, "lowercase": True, "train_bytes": 100}
