"""Words and sentences, told from tokens."""

from __future__ import annotations

import numpy as np
import pytest

from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import ByteBpe, Split
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokenizer.words import words

TEXT = "The unbelievable naïve reader's 1234 books (two). Über: Größe! Why?\nNext line, ok."


def bpe(split: Split) -> Tokenizer:
    return ByteBpe(split=split).build(300).make([TEXT] * 30)


def word_piece() -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    pieces = ["[UNK]", "[SEP]", "[MASK]", "un", "##believ", "##able", "the", "read", "##er", ".", "books", "2", "##3", "?"]
    inner = Inner(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(["[UNK]", "[SEP]", "[MASK]"])
    return HfTokenizer(inner, 1)


def sentence_piece() -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    pieces = ["</s>", "▁", "▁un", "believ", "able", "▁the", "▁read", "er", ".", "▁books", "2", "3", "?", "▁(", "a"]
    inner = Inner(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return HfTokenizer(inner, 0)


def cut(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text at every start of a word."""
    ids = np.array(tokenizer.encode(text))
    starts = np.flatnonzero(words(tokenizer).starts(ids)).tolist()
    return [tokenizer.decode(ids[a:b].tolist()) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]


@pytest.mark.parametrize("tokenizer", [bpe(Split.gpt2), bpe(Split.indent), ByteTokenizer()], ids=["gpt2", "indent", "bytes"])
def test_bytes_of_a_word_stay_together(tokenizer: Tokenizer) -> None:
    pieces = cut(tokenizer, TEXT)
    assert "".join(pieces) == TEXT
    found = [piece.strip(" \n") for piece in pieces]
    for word in ("The", "unbelievable", "naïve", "1234", "books", "Über", "Größe", "Next", "line", "ok"):
        assert word in found, word


def test_word_pieces() -> None:
    assert cut(word_piece(), "the unbelievable reader books 23?") == ["the", "unbelievable", "reader", "books", "23", "?"]


def test_sentence_pieces() -> None:
    tokenizer = sentence_piece()
    ids = np.array(tokenizer.encode("the unbelievable reader (a books."))
    starts = words(tokenizer).starts(ids)
    assert [tokenizer.inner.id_to_token(i) for i in ids[starts].tolist()] == ["▁the", "▁un", "▁read", "▁(", "a", "▁books", "."]


@pytest.mark.parametrize("tokenizer", [bpe(Split.gpt2), bpe(Split.gpt4), ByteTokenizer()], ids=["gpt2", "gpt4", "bytes"])
def test_sentences(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode(TEXT))
    stops = np.flatnonzero(words(tokenizer).stops_V[ids]).tolist()
    ends = {len(tokenizer.decode(ids[: stop + 1].tolist())) for stop in stops}
    assert {TEXT.index("."), TEXT.index("!"), len(TEXT) - 1} <= {end - 1 for end in ends} | {end - 2 for end in ends}
    assert not any(words(tokenizer).stops_V[token] for token in tokenizer.encode("The reader, books: two"))


def test_special_tokens_are_outside_of_words() -> None:
    table = words(word_piece())
    assert not table.closes_V[:3].any()
    assert not table.opens_V[:3].any()
