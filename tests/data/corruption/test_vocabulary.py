"""Special tokens: the tokenizer's own, or the highest ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.core.special import MASK, START_OF_SPAN, sentinels
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.spec import ByteBpe, Bytes, HfFile


def file_with(folder: Path, *specials: str) -> str:
    """A tokenizer of four words and some special tokens."""
    from tokenizers import Tokenizer, models

    inner = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1, "b": 2, "[UNK]": 3, "sop": 4}, "[UNK]"))
    inner.add_special_tokens(["<|endoftext|>", *specials])
    inner.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def test_from_the_top_in_order() -> None:
    vocabulary = Vocabulary(400, ByteTokenizer())
    assert vocabulary.ids([MASK]) == [399]
    assert vocabulary.ids(sentinels(3)) == [399, 398, 397]  # as T5: <extra_id_0> is the highest
    assert (vocabulary.end_id, vocabulary.text_size) == (256, 257)


def test_the_tokenizer_s_own_come_first(tmp_path: Path) -> None:
    tokenizer = HfFile(file=file_with(tmp_path, "<mask>", "<extra_id_1>")).build(20).make([])
    vocabulary = Vocabulary(20, tokenizer)
    assert vocabulary.ids([MASK]) == [5]
    assert vocabulary.ids(sentinels(3)) == [19, 6, 18]
    assert vocabulary.ids([START_OF_SPAN]) == [19], "a word of the text is no special token"


def test_a_trained_tokenizer_leaves_the_room() -> None:
    text = ["the words of a text, and some of these words again"] * 20
    full = ByteBpe().build(280).make(text)
    room = ByteBpe().build(280, sentinels(10)).make(text)
    assert (full.vocab_size, room.vocab_size) == (280, 270)
    assert min(Vocabulary(280, room).ids(sentinels(10))) == 270
    assert ByteBpe().build(280, sentinels(10)).fingerprint() == ByteBpe().build(270).fingerprint()


def test_a_fixed_tokenizer_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    assert Bytes().build(267, sentinels(10)).make([]).vocab_size == 257
    with pytest.raises(
        UserError, match=r"data/tokenizer=bytes has 257 ids and the objective needs 10 more.*model\.vocab_size=267"
    ):
        Bytes().build(266, sentinels(10))
    file = file_with(tmp_path, "<mask>")
    HfFile(file=file).build(6, [MASK])
    HfFile(file=file).build(8, sentinels(2))
    with pytest.raises(UserError, match=r"has 6 ids and the objective needs 2 more.*Try model\.vocab_size=8"):
        HfFile(file=file).build(7, sentinels(2))
    with pytest.raises(UserError, match=r"has 6 ids, the model only 5"):
        HfFile(file=file).build(5, [MASK])
