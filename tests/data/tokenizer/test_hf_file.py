"""A tokenizer.json from outside, and what can be wrong with it; a kept tokenizer that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import ByteBpe, HfFile
from llmfactory.data.tokenizer.tokenizer import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    ByteBpe().build(300).make(["some words and some more words " * 20]).save(tmp_path / "made")
    return tmp_path / "made" / "tokenizer.json"


@pytest.mark.parametrize("of_folder", [False, True])
def test_it_is_used_as_it_is(file: Path, of_folder: bool) -> None:
    inner = HfTokenizer.read(file, 0).inner
    tokenizer = HfFile(file=str(file.parent if of_folder else file)).build(1000).make([])
    assert tokenizer.encode("some words") == inner.encode("some words").ids
    assert tokenizer.decode(tokenizer.encode("some words")) == "some words"
    assert tokenizer.end_id == inner.token_to_id("<|endoftext|>")


def test_truncation_padding_and_added_tokens_of_the_file_do_not_count(file: Path) -> None:
    inner = HfTokenizer.read(file, 0).inner
    expected = inner.encode("some words").ids
    inner.enable_truncation(1)
    inner.enable_padding(length=50)
    inner.save(str(file))
    assert HfFile(file=str(file)).build(1000).make([]).encode_batch(["some words"]) == [expected]


def test_the_end_token_can_be_named(file: Path) -> None:
    assert HfFile(file=str(file), end_token="s").build(1000).make([]).end_id != HfFile(file=str(file)).build(1000).make([]).end_id
    with pytest.raises(UserError, match=r"knows no '<end>'.*data.tokenizer.end_token"):
        HfFile(file=str(file), end_token="<end>").build(1000)


def test_a_file_without_a_known_end_token_asks_for_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"knows none of <\|endoftext\|>.*name its end token"):
        HfFile(file=str(tmp_path)).build(10)


def test_a_larger_file_than_the_model_names_both(file: Path) -> None:
    size = HfFile(file=str(file)).build(1000).make([]).vocab_size
    with pytest.raises(UserError, match=rf"tokenizer.json has {size} ids, the model only 100 .*Try model.vocab_size={size}"):
        HfFile(file=str(file)).build(100)


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff\xfe"])
def test_another_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is no tokenizer.json"):
        HfFile(file=str(path)).build(100)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot read the tokenizer {tmp_path / 'x.json'}"):
        HfFile(file=str(tmp_path / "x.json")).build(100)


@pytest.mark.parametrize(
    ("about", "said"),
    [(None, "no tokenizer in"), ("{", "is damaged"), ("{}", "is damaged"), ('{"kind": "x", "end_id": 0}', "unknown kind")],
)
def test_a_damaged_folder_is_named(tmp_path: Path, about: str | None, said: str) -> None:
    if about is not None:
        (tmp_path / "about.json").write_text(about)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_further_special_tokens_get_the_next_ids(tmp_path: Path) -> None:
    made = ByteBpe().build(300).make(["words and words"])
    made.save(tmp_path)
    for file in (tmp_path, tmp_path / "tokenizer.json"):
        more = HfFile(file=str(file), special_tokens=["<|im_start|>", "<|endoftext|>"]).build(400).make(())
        assert more.specials() == {"<|endoftext|>": made.end_id, "<|im_start|>": made.vocab_size}
        assert more.vocab_size == made.vocab_size + 1
        assert more.encode("words <|im_start|>") == made.encode("words <|im_start|>")
