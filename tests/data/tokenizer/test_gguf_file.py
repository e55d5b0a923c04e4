"""Tokenizers of GGUF files: the ids of those that they were made of; what is refused; the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.bytes import ByteTokenizer, as_pairs
from llmfactory.data.tokenizer.gguf_file import read_tokenizer
from llmfactory.data.tokenizer.gguf_metadata import tokenizer_metadata
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.pieces import SPACE, merges_of
from llmfactory.data.tokenizer.spec import ByteBpe, GgufFile, Split
from llmfactory.data.tokenizer.splits import CUTS, cut_of, name_of, pre_tokenizer
from llmfactory.data.tokenizer.tokenizer import Usage, load

WORDS = ["It's 12345 words,  and\n\n  more of them: naïve Ünïcödé <|endoftext|> 東京\tx\r\n" * 9, "what's it 7 to\nyou?  " * 9]


def write(path: Path, metadata: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def there_and_back(tokenizer: HfTokenizer, folder: Path, vocab_size: int = 400) -> HfTokenizer:
    return read_tokenizer(write(folder / "t.gguf", tokenizer_metadata(tokenizer, vocab_size)))


@pytest.mark.parametrize("split", [Split.gpt2, Split.gpt4])
def test_byte_pairs_keep_their_ids(tmp_path: Path, split: Split) -> None:
    made = ByteBpe(split=split).build(380).make(WORDS)
    assert isinstance(made, HfTokenizer)
    back = there_and_back(made, tmp_path)
    for text in WORDS:
        assert back.encode(text) == made.encode(text)
        assert back.decode(back.encode(text)) == text
    assert (back.end_id, back.usage) == (made.end_id, made.usage)
    assert back.vocab_size == 400, "the model's ids that the tokenizer lacks have names too"


def test_bytes_as_pairs(tmp_path: Path) -> None:
    back, text = there_and_back(as_pairs(), tmp_path), WORDS[0]
    assert as_pairs().encode(text) == ByteTokenizer().encode(text) == back.encode(text)
    assert (back.end_id, as_pairs().vocab_size) == (ByteTokenizer.end_id, ByteTokenizer.vocab_size)
    assert back.decode(list(text.encode())) == text


def test_chat_template_and_special_tokens(tmp_path: Path) -> None:
    from tokenizers import AddedToken

    made = ByteBpe(split=Split.gpt2).build(380).make(WORDS)
    assert isinstance(made, HfTokenizer)
    made.inner.add_special_tokens([AddedToken("<turn>", special=True)])
    made.inner.add_tokens([AddedToken("own", special=False)])
    turn = made.inner.token_to_id("<turn>")
    given = HfTokenizer(made.inner, made.end_id, Usage((), (made.end_id, turn), "{{ messages }}"))
    back = there_and_back(given, tmp_path)
    assert back.usage == given.usage
    assert back.specials() == given.specials()
    assert back.encode("x <turn> own") == given.encode("x <turn> own")
    assert turn not in back.encode("<turn>"), "a text about it"


def test_a_split_without_a_name_is_refused() -> None:
    made = ByteBpe(split=Split.indent).build(380).make(WORDS)
    assert isinstance(made, HfTokenizer)
    with pytest.raises(UserError, match=r"no name for .*gpt2 and gpt4 have one"):
        tokenizer_metadata(made, 380)


@pytest.mark.parametrize("name", [name for cut in CUTS for name in cut.names])
def test_every_cut_is_found_again(name: str) -> None:
    from tokenizers import Tokenizer, models

    cut = cut_of(name, "x")
    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], ignore_merges=cut.ignore_merges))
    inner.pre_tokenizer = pre_tokenizer(cut)
    assert name_of(inner) == cut.names[0]


def test_the_same_pieces_as_published_tokenizers_cut() -> None:
    """`Digits` and GPT-2's pattern (SmolLM2, StarCoder) as their tokenizer.json has them."""
    from tokenizers import pre_tokenizers

    theirs = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    ours = pre_tokenizer(cut_of("smollm", "x"))
    for text in WORDS:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    SPACE,
    "a",
    "b",
    "c",
    "ab",
    f"{SPACE}a",
    "abc",
    "bc",
]
SCORES = {"ab": -1.0, f"{SPACE}a": -2.0, "abc": -3.0, "bc": -0.5}
TYPES = [2, 3, 3, *[6] * 256, *[1] * 8]


def sentencepiece(folder: Path, **changes: Any) -> HfTokenizer:
    metadata = {
        "model": "llama",
        "tokens": PIECES,
        "scores": [SCORES.get(piece, 0.0) for piece in PIECES],
        "token_type": TYPES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return read_tokenizer(write(folder / "s.gguf", {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}))


def test_pieces_merge_by_score_and_fall_back_to_bytes(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)

    def spelled(text: str) -> list[str]:
        return [tokenizer.inner.id_to_token(number) for number in tokenizer.encode(text)]

    assert spelled("abc") == [f"{SPACE}a", "bc"], "bc (-0.5) comes before ab (-1), and then a word's start before a"
    assert spelled("c ab") == [SPACE, "c", SPACE, "ab"]
    assert spelled("é") == [SPACE, "<0xC3>", "<0xA9>"]
    for text in ("abc cab é</s>", "  a\nb"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.end_id not in tokenizer.encode("</s>")
    assert tokenizer.usage == Usage((1,), (2,))
    assert sentencepiece(tmp_path, add_bos_token=False).usage.begin_ids == ()
    assert sentencepiece(tmp_path, add_space_prefix=False).encode("a") == [PIECES.index("a")]


def test_pieces_keep_their_ids_on_the_way_back(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    back = there_and_back(tokenizer, tmp_path, len(PIECES))
    for text in ("abc cab é</s>", "  a\nb", "bca abcabc"):
        assert back.encode(text) == tokenizer.encode(text)
    assert back.usage == tokenizer.usage


def test_merges_are_ordered_by_score_then_place() -> None:
    assert merges_of({"a": 0, "b": 0, "ab": -2, "aa": -1, "aab": -1}) == [("a", "a"), ("a", "ab"), ("aa", "b"), ("a", "b")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "bert"}, "a tokenizer of the kind 'bert'; gpt2 and llama can be read"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is no list of tokens"),
        ({"tokens": ["a", "a"]}, "a token stands in tokenizer.ggml.tokens twice"),
        ({"eos_token_id": 9999}, "tokenizer.ggml.eos_token_id is 9999, with 267 tokens"),
        ({"scores": [0.0]}, "267 tokens without as many tokenizer.ggml.scores"),
        ({"token_type": [1]}, "267 tokens with 1 values of tokenizer.ggml.token_type"),
        ({"model": "gpt2", "pre": "unheard-of"}, "cuts text in the way 'unheard-of', which is not known here: there are gpt-2"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["a"]}, "the merge 'a' is not of two tokens that make a third"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["a z"]}, "the merge 'a z' is not of two tokens"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        sentencepiece(tmp_path, **changes)
    assert "s.gguf" in str(raised.value)


def test_as_an_option_it_must_fit_the_model_and_is_kept(tmp_path: Path) -> None:
    sentencepiece(tmp_path)
    file = GgufFile(file=str(tmp_path / "s.gguf"))
    with pytest.raises(UserError, match=r"s.gguf has 267 ids, the model only 200"):
        file.build(200)
    source = file.build(300)
    made = source.make(())
    made.save(tmp_path / "kept")
    kept = load(tmp_path / "kept")
    assert isinstance(kept, HfTokenizer)
    assert (kept.encode("abc é"), kept.usage, kept.fingerprint()) == (made.encode("abc é"), made.usage, source.fingerprint())
    assert json.loads((tmp_path / "kept" / "about.json").read_text())["stop_ids"] == [2]
