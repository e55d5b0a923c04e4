"""Bytes as tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.spec import Bytes
from llmfactory.data.tokenizer.tokenizer import Usage, load


@pytest.mark.parametrize("text", ["", "abc", "naïve 数学 👩‍👩‍👧", "\u0000\U0010ffff\r\n"])
def test_round_trip(text: str, tmp_path: Path) -> None:
    tokenizer = Bytes().build(257).make([])
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.encode_batch([text, text]) == [ids, ids]
    assert tokenizer.decode([*ids, tokenizer.end_id]) == text
    tokenizer.save(tmp_path)
    assert isinstance(load(tmp_path), ByteTokenizer)


def test_half_a_character_is_no_error() -> None:
    assert ByteTokenizer().decode([0xC3]) == "\ufffd"


def test_a_model_with_fewer_ids_is_an_error() -> None:
    with pytest.raises(UserError, match="data/tokenizer=bytes has 257 ids, the model only 256"):
        Bytes().build(256)


def test_how_it_is_used_is_kept(tmp_path: Path) -> None:
    usage = Usage((256,), (256, 10), "{{ messages }}")
    ByteTokenizer(usage).save(tmp_path)
    assert load(tmp_path).usage == usage
