"""Concatenated rows against a plain reference that walks the stream token by token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.data.pack.spec import Concat
from llmfactory.data.tokens import TokenFile

LENGTHS = [0, 3, 1, 17, 40, 1, 1, 2, 9, 0, 5]


def reference(tokens: TokenFile, seq_len: int, isolate: bool) -> list[dict[str, list[int]]]:
    stream, borders = tokens.tokens.tolist(), set(tokens.offsets.tolist())
    rows = []
    for start in range(0, tokens.targets, seq_len):
        row: dict[str, list[int]] = {"tokens": [], "labels": [], "positions": [], "segments": []}
        position, segment = -1, 1
        for place in range(start, start + seq_len):
            if place >= tokens.targets:
                values = (tokens.end_id, IGNORE, 0, 0)
            else:
                position += 1
                if isolate and place in borders and place > start:
                    position, segment = 0, segment + 1
                values = (stream[place], stream[place + 1], position, segment)
            for key, value in zip(row, values, strict=True):
                row[key].append(value)
        rows.append(row)
    return rows


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("seq_len", [2, 3, 7, 8, 45, 89, 90, 91, 200])
def test_rows_equal_the_reference(token_file: Callable[..., TokenFile], seq_len: int, isolate: bool) -> None:
    tokens = token_file(LENGTHS)
    rows = Concat(isolate=isolate).build(tokens, seq_len)
    expected = reference(tokens, seq_len, isolate)
    assert rows.isolated is isolate
    assert len(rows) == len(expected)
    for order in (np.arange(len(rows)), np.arange(len(rows))[::-1].copy(), np.array([0, 0, len(rows) - 1])):
        batch = rows.read(order)
        for key, value in batch.items():
            assert value.dtype == torch.int64
            assert value.is_contiguous()
            assert value.tolist() == [expected[index][key] for index in order], key


def test_random_streams_equal_the_reference(token_file: Callable[..., TokenFile]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        tokens = token_file(generator.integers(0, generator.integers(2, 60), generator.integers(1, 40)).tolist())
        seq_len = int(generator.integers(2, 64))
        rows, expected = Concat().build(tokens, seq_len), reference(tokens, seq_len, True)
        order = generator.integers(0, len(rows), 7)
        assert {key: value.tolist() for key, value in rows.read(order).items()} == {
            key: [expected[index][key] for index in order] for key in expected[0]
        }


@pytest.mark.parametrize("isolate", [True, False])
def test_every_target_stands_once(token_file: Callable[..., TokenFile], isolate: bool) -> None:
    tokens = token_file(LENGTHS)
    batch = Concat(isolate=isolate).build(tokens, 8).read(np.arange(-(-tokens.targets // 8)))
    kept = batch["labels"][batch["labels"] != IGNORE]
    assert Counter(kept.tolist()) == Counter(tokens.tokens[1:].tolist())
    assert len(kept) == sum(LENGTHS) + len(LENGTHS) == tokens.targets


def test_the_target_of_a_document_s_first_token_is_seen_from_its_own_document_only(token_file: Callable[..., TokenFile]) -> None:
    tokens = token_file([5, 5, 5])
    batch = Concat().build(tokens, 18).read(np.array([0]))
    first = torch.isin(torch.arange(18), torch.from_numpy(tokens.offsets.copy()))
    assert (batch["tokens"][0][first] == tokens.end_id).all()
    assert (batch["positions"][0][first] == 0).all()
    assert (batch["segments"][0].diff() == first[1:].long()).all()


def test_a_batch_never_changes_later(token_file: Callable[..., TokenFile]) -> None:
    rows = Concat().build(token_file(LENGTHS), 8)
    first = rows.read(np.array([1, 2]))
    kept = {key: value.clone() for key, value in first.items()}
    first["labels"][0, 0] = 7  # nor do its fields share memory
    kept["labels"][0, 0] = 7
    rows.read(np.array([3, 4]))
    assert all(torch.equal(first[key], kept[key]) for key in kept)
    assert rows.read(np.array([1]))["labels"][0, 0] != 7


def test_there_is_no_other_row(token_file: Callable[..., TokenFile]) -> None:
    rows = Concat().build(token_file(LENGTHS), 8)
    for wrong in ([-1], [len(rows)], [0, 99], []):
        with pytest.raises(IndexError):
            rows.read(np.array(wrong, np.int64))
