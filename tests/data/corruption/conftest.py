"""Rows of packed documents, made by hand, and a vocabulary of bytes with special ids on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.tokenizer.bytes import ByteTokenizer

END = ByteTokenizer.end_id
V = 400
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ..\n", np.uint8).astype(np.int64)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(V, ByteTokenizer())


@pytest.fixture
def rows() -> Callable[..., dict[str, torch.Tensor]]:
    """`rows(width, [[5, 7], [12]])`: rows of documents of these sizes, an end token first; the rest is padding.

    `goes_on`: the first document of each row began in an earlier one, so that it has no end token.
    """

    def make(width: int, sizes: Sequence[Sequence[int]], seed: int = 0, goes_on: bool = False) -> dict[str, torch.Tensor]:
        numbers = np.random.default_rng(seed)
        tokens, segments = np.full((len(sizes), width), END), np.zeros((len(sizes), width), np.int64)
        positions, labels = np.zeros_like(segments), np.full((len(sizes), width), -100)
        for row, documents in enumerate(sizes):
            column = 0
            for number, size in enumerate(documents, start=1):
                text = numbers.choice(LETTERS, size + 1)
                first = 1 if number == 1 and goes_on else 0
                piece = np.concatenate([[END], text, [END]])[first:]
                tokens[row, column : column + size] = piece[:size]
                labels[row, column : column + size] = piece[1 : size + 1]
                segments[row, column : column + size] = number
                positions[row, column : column + size] = np.arange(size)
                column += size
            assert column <= width
        found = {"tokens": tokens, "labels": labels, "positions": positions, "segments": segments}
        return {name: torch.from_numpy(field.astype(np.int64)) for name, field in found.items()}

    return make


@pytest.fixture
def random_rows(rows) -> Callable[..., dict[str, torch.Tensor]]:
    """Many rows of many sizes: `random_rows(width, 30)`."""

    def make(width: int, count: int, mean: float = 20.0, seed: int = 0, goes_on: bool = False) -> dict[str, torch.Tensor]:
        numbers = np.random.default_rng(seed)
        sizes = []
        for row in range(count):
            left, documents = (width if row % 4 else width // 2), []
            while left:
                documents.append(min(left, 1 + int(numbers.exponential(mean))))
                left -= documents[-1]
            sizes.append(documents)
        return rows(width, sizes, seed=seed, goes_on=goes_on)

    return make


@pytest.fixture
def texts() -> Callable[[dict[str, torch.Tensor], int], list[list[int]]]:
    """Documents of a row without their end tokens, by number."""

    def read(batch: dict[str, torch.Tensor], row: int) -> list[list[int]]:
        tokens, segments = batch["tokens"][row].tolist(), batch["segments"][row].tolist()
        found = []
        for number in range(1, max(segments, default=0) + 1):
            text = [token for token, segment in zip(tokens, segments, strict=True) if segment == number]
            found.append(text[1:] if text and text[0] == END else text)
        return found

    return read
