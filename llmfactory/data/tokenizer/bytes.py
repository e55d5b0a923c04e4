"""Bytes as tokens: ids 0 to 255 are the bytes of UTF-8, 256 ends a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.patterns import letters
from llmfactory.data.tokenizer.tokenizer import Tokenizer, TokenizerSource, Usage, between_ends, check_size, write_about

END = 256
END_TOKEN = "<|endoftext|>"
"""How the end of a document is spelled where it must have a name."""


class ByteTokenizer(Tokenizer):
    vocab_size = 257
    end_id = END

    def __init__(self, usage: Usage | None = None) -> None:
        """`usage`: None for a model that we train."""
        self.usage = usage or between_ends(END)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(place, place + 1) for place, character in enumerate(text) for _ in character.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != END).decode(errors="replace")

    def fingerprint(self) -> str:
        return f"bytes {self.usage}"

    def save(self, folder: Path) -> None:
        write_about(folder, "bytes", END, self.usage)


def as_pairs() -> HfTokenizer:
    """The same tokenizer as byte-level pairs without a merge: for programs that know those."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    inner = Inner(models.BPE({character: byte for byte, character in enumerate(letters())}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(END_TOKEN, special=True, normalized=False)])
    return HfTokenizer(inner, END)


class ByteTokenizerSource(TokenizerSource):
    def __init__(self, vocab_size: int, reserved: int = 0) -> None:
        check_size(ByteTokenizer.vocab_size, vocab_size, "data/tokenizer=bytes", reserved)

    def fingerprint(self) -> str:
        return ByteTokenizer().fingerprint()

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return ByteTokenizer()
