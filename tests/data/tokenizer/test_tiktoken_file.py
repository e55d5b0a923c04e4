"""Files of ranks: the ids of `tiktoken` on any text, special tokens at their places, broken lines named."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest
import tiktoken

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.patterns import letters
from llmfactory.data.tokenizer.spec import ByteBpe, Split, TiktokenFile, TiktokenSplit
from llmfactory.data.tokenizer.tiktoken_file import OWN, PATTERN, build, read
from llmfactory.data.tokenizer.tokenizer import load


@pytest.fixture(scope="module")
def ranks(corpus: list[str]) -> dict[bytes, int]:
    """Learned ones, and two tokens that no merges lead to."""
    made = ByteBpe(split=Split.gpt4).build(500).make(corpus)
    assert isinstance(made, HfTokenizer)
    byte = {letter: number for number, letter in enumerate(letters())}
    vocab = made.inner.get_vocab(with_added_tokens=False)
    found = {bytes(byte[c] for c in token): number - 1 for token, number in vocab.items() if number > 0}
    return {**found, b"qzqzqz": 499, b"jumpsover": 500}


def write(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path


@pytest.mark.parametrize("split", TiktokenSplit)
def test_the_ids_are_those_of_tiktoken(
    split: TiktokenSplit, ranks: dict[bytes, int], samples: list[str], corpus: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "my.tiktoken", ranks)
    theirs = tiktoken.Encoding("mine", pat_str=PATTERN[split], mergeable_ranks=ranks, special_tokens={})
    tokenizer = TiktokenFile(file=str(path), split=split).build(1000).make(())
    assert isinstance(tokenizer, HfTokenizer)
    chance = random.Random(0)
    letter = ["qz", "qzqzqz", "jumps", "over", "jumpsover", " ", "the", "数", "学", "\n", "'s", "1"]
    texts = [*samples, *corpus, *("".join(chance.choice(letter) for _ in range(12)) for _ in range(500))]
    assert [tokenizer.encode(text) for text in texts] == [theirs.encode_ordinary(text) for text in texts]
    assert tokenizer.encode_batch(texts) == [theirs.encode_ordinary(text) for text in texts]
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)
    assert tokenizer._ranks is not None, "as fast as theirs"
    assert (tokenizer.end_id, tokenizer.lossless) == (501, True)
    tokenizer.save(tmp_path / "kept")
    assert load(tmp_path / "kept").encode_batch(texts) == tokenizer.encode_batch(texts)


def test_special_tokens_of_a_known_vocabulary_stand_at_their_ids(ranks: dict[bytes, int], tmp_path: Path) -> None:
    count, own = OWN[TiktokenSplit.p50k]
    filler = (bytes([0xFF, 0xFE, number >> 8, number & 255]) for number in range(2**16))
    whole = {token: rank for rank, token in enumerate(ranks)}
    while len(whole) < count:
        place = len(whole)
        whole[next(filler)] = place + (place >= own["<|endoftext|>"])
    tokenizer = TiktokenFile(file=str(write(tmp_path / "p50k.tiktoken", whole)), split=TiktokenSplit.p50k).build(60000).make(())
    assert tokenizer.specials() == own
    assert (tokenizer.end_id, tokenizer.vocab_size) == (50256, 50281)
    assert 50256 not in tokenizer.encode("<|endoftext|>")


def test_further_special_tokens_and_another_end(ranks: dict[bytes, int], tmp_path: Path) -> None:
    path = str(write(tmp_path / "my.tiktoken", ranks))
    spec = TiktokenFile(file=path, split=TiktokenSplit.cl100k, end_token="<|end|>", special_tokens=["<|im_start|>"])
    made = spec.build(1000).make(())
    assert made.specials() == {"<|im_start|>": 501, "<|end|>": 502}
    assert made.end_id == 502
    others = [TiktokenFile(file=path, split=split).build(1000).fingerprint() for split in TiktokenSplit]
    assert len({*others, spec.build(1000).fingerprint()}) == 4, "gpt2, r50k and p50k cut alike"
    with pytest.raises(UserError, match="model only 400"):
        TiktokenFile(file=path, split=TiktokenSplit.gpt2).build(400)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("!!! 300", "line 2 is no token in base64"),
        ("YWI=", "line 2 is no token in base64"),
        ("YWI= x", "line 2 is no token in base64"),
        ("YWI= -1", "line 2: rank -1"),
        ("AA== 300", "line 2: the token stands there twice"),
        ("YWI= 0", "two tokens have the same rank"),
    ],
)
def test_a_broken_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "my.tiktoken", {bytes([byte]): byte for byte in range(256)})
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], line, *rows[1:]]))
    with pytest.raises(UserError, match=f"my.tiktoken.*{reason}"):
        read(path)


def test_a_file_without_all_bytes_is_no_whole_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no rank for 254 of the 256 bytes, the first is 0x00"):
        read(write(tmp_path / "my.tiktoken", {b"a": 0, b"b": 1}))


def test_the_name_of_another_vocabulary_is_an_error(tmp_path: Path) -> None:
    count, _ = OWN[TiktokenSplit.gpt2]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {bytes([0xFF, 0xFE, number >> 8, number & 255]): 256 + number for number in range(count - 257)}
    ranks[b"last"] = 50256
    with pytest.raises(UserError, match="is not the vocabulary gpt2: it gives rank 50256 to a text"):
        build(ranks, TiktokenSplit.gpt2, tmp_path)
