"""SentencePiece's files: the ids of its own program, and what is no such file."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.sentencepiece_file import build, read, understood
from llmfactory.data.tokenizer.spec import SentencepieceFile
from llmfactory.data.tokenizer.tokenizer import load
from llmfactory.data.tokenizer.wire import Damaged, parse

LINES = [
    "The quick brown fox jumps over the lazy dog; it's 1984, isn't it?",
    "words and more words, a word at a time, the words of the world are wordy words",
    "数学是研究数量、结构以及空间等概念的一门学科。",
    "北京是中华人民共和国的首都，北京大学在北京。",
    "    def f(x):  return x + 1  # spaces",
    "Größe naïve café ﬁne Ｆｕｌｌ",
]


def train(**settings: Any) -> bytes:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20), model_writer=made, hard_vocab_limit=False, minloglevel=2, num_threads=1, **settings
    )
    return made.getvalue()


def texts() -> list[str]:
    chance = random.Random(0)
    pieces = [
        " ",
        "  ",
        "word",
        "world",
        "fox",
        "数学",
        "北京",
        "大学",
        "é",
        "ﬁ",
        "1984",
        "Ａ",
        "\n",
        "\t",
        "👩‍👧",
        "x",
        ".",
        "<s>",
        "<0x41>",
    ]
    made = ["".join(chance.choice(pieces) for _ in range(chance.randrange(1, 20))) for _ in range(400)]
    return [*LINES, *made, "", " ", "   ", " a", "a ", "  a  b  ", "</s>", "<unk>", "<0x0A>", "▁", "a▁b", "x" * 300]


KINDS = {
    "pairs": {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "normalization_rule_name": "identity"},
    "pairs_kept": {
        "model_type": "bpe",
        "vocab_size": 500,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "pairs_unknown": {"model_type": "bpe", "vocab_size": 250, "character_coverage": 0.98},
    "pairs_no_prefix": {"model_type": "bpe", "vocab_size": 250, "add_dummy_prefix": False, "split_digits": True},
    "pairs_own": {
        "model_type": "bpe",
        "vocab_size": 500,
        "byte_fallback": True,
        "user_defined_symbols": ["<turn>", "fox", "北京大学"],
        "control_symbols": ["<pad>"],
        "remove_extra_whitespaces": False,
    },
    "unigram": {"model_type": "unigram", "vocab_size": 200},
    "unigram_bytes": {"model_type": "unigram", "vocab_size": 420, "byte_fallback": True, "character_coverage": 0.98},
    "unigram_own": {
        "model_type": "unigram",
        "vocab_size": 200,
        "user_defined_symbols": ["<turn>", "fox", "北京大学", "words and more words"],
        "control_symbols": ["<pad>"],
    },
    "unigram_identity": {
        "model_type": "unigram",
        "vocab_size": 200,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_the_ids_are_those_of_its_own_program(name: str, tmp_path: Path) -> None:
    content = train(**KINDS[name])
    (tmp_path / "my.model").write_bytes(content)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    source = SentencepieceFile(file=str(tmp_path / "my.model")).build(1000)
    ours = source.make(())
    assert isinstance(ours, HfTokenizer)
    assert ours.vocab_size == theirs.get_piece_size()
    more = ["<turn>a fox<turn> b", "fox", "a foxfox 北京大学生"] if name.endswith("own") else []
    ids = ours.encode_batch([*texts(), *more])
    for text, found in zip([*texts(), *more], ids, strict=True):
        if name.startswith("unigram") and name != "unigram_bytes" and "<" in text:
            continue  # neighbours that are unknown are one token, and names are cut
        assert found == theirs.encode(text), text
        if not name.startswith("unigram_own") and "▁" not in text and theirs.unk_id() not in found:
            assert ours.decode(found) == theirs.decode(found)
    ours.save(tmp_path / "kept")
    assert load(tmp_path / "kept").encode_batch([*texts(), *more]) == ids
    assert ours.lossless is (name == "pairs_kept")
    assert {"<s>", "</s>"} <= ours.specials().keys()


def test_end_and_begin_tokens_and_further_ones(tmp_path: Path) -> None:
    path = tmp_path / "my.model"
    path.write_bytes(train(**KINDS["pairs"]))
    plain = SentencepieceFile(file=str(path)).build(1000).make(())
    assert (plain.end_id, plain.usage.begin_ids, plain.usage.stop_ids) == (2, (2,), (2,))
    other = SentencepieceFile(file=str(path), begin_token="<s>", special_tokens=["<|im_start|>", "<|im_end|>"])
    made = other.build(1000).make(())
    assert (made.usage.begin_ids, made.usage.stop_ids) == ((1,), (2,))
    assert [made.specials()[name] for name in other.special_tokens] == [plain.vocab_size, plain.vocab_size + 1]
    assert other.build(1000).fingerprint() != SentencepieceFile(file=str(path)).build(1000).fingerprint()
    assert SentencepieceFile(file=str(path), end_token="<s>").build(1000).make(()).end_id == 1
    with pytest.raises(UserError, match=r"knows no '<bos>': name its begin token, data.tokenizer.begin_token"):
        SentencepieceFile(file=str(path), begin_token="<bos>").build(1000)
    with pytest.raises(UserError, match=r"the model only 300"):
        SentencepieceFile(file=str(path)).build(300)


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my.model"
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*my.model"):
        read(path)
    content = train(**KINDS["unigram"])
    for wrong in (b"", b"\x00\x01", b"no model at all", content[: len(content) // 2]):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"my.model is no SentencePiece model"):
            read(path)
    path.write_bytes(train(model_type="word", vocab_size=60))
    with pytest.raises(UserError, match="whole words or characters"):
        read(path)
    path.write_bytes(train(model_type="bpe", vocab_size=200, treat_whitespace_as_suffix=True))
    with pytest.raises(UserError, match="spaces behind words"):
        read(path)


def test_a_file_cut_anywhere_never_crashes() -> None:
    content = train(**KINDS["unigram"])
    for size in range(0, len(content), 97):
        with contextlib.suppress(UserError):
            build(understood(content[:size], "cut"))


def test_messages_of_protocol_buffers() -> None:
    message = parse(b"\x08\x96\x01\x12\x02hi\x12\x00\x1d\x00\x00\x80\x3f\x21\x00\x00\x00\x00\x00\x00\xf0\x3f\x08\x01")
    assert message.all(1, int) == [150, 1]
    assert message.last(1, 0) == 1
    assert message.all(2, bytes) == [b"hi", b""]
    assert (message.last(3, 0.0), message.last(4, 0.0), message.last(9, 7)) == (1.0, 1.0, 7)
    with pytest.raises(Damaged, match="field 2 is bytes, not int"):
        message.last(2, 0)
    for wrong in (b"\x08", b"\x12\x05hi", b"\x0b", b"\xff" * 12, b"\x1d\x00"):
        with pytest.raises(Damaged):
            parse(wrong)
