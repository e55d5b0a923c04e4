"""Bytes as tokens: ids 0 to 255 are the bytes of UTF-8, 256 ends a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from llmfactory.data.tokenizer.tokenizer import Tokenizer, TokenizerSource, between_ends, check_size, write_about

END = 256


class ByteTokenizer(Tokenizer):
    vocab_size = 257
    end_id = END
    usage = between_ends(END)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [(place, place + 1) for place, character in enumerate(text) for _ in character.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i != END).decode(errors="replace")

    def save(self, folder: Path) -> None:
        write_about(folder, "bytes", END, self.usage)


class ByteTokenizerSource(TokenizerSource):
    def __init__(self, vocab_size: int, reserved: int = 0) -> None:
        check_size(ByteTokenizer.vocab_size, vocab_size, "data/tokenizer=bytes", reserved)

    def fingerprint(self) -> str:
        return "bytes"

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return ByteTokenizer()
