"""Hashes of sequences, against tuples."""

from __future__ import annotations

import random

import numpy as np

from llmfactory.data.ngrams import hashes, places


def test_sequences_are_told_apart_and_found_again() -> None:
    draw = random.Random(0)
    lengths = [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 50]
    seen: dict[int, tuple[int, ...]] = {}
    for _ in range(60):
        numbers = np.array([draw.randrange(3) for _ in range(draw.randrange(70))], np.uint64)
        found = hashes(numbers, lengths)
        assert list(found) == lengths
        for length, its in found.items():
            sequences = [tuple(numbers[at : at + length].tolist()) for at in range(max(0, len(numbers) - length + 1))]
            assert len(its) == len(sequences)
            for key, sequence in zip(its.tolist(), sequences, strict=True):
                assert seen.setdefault(key, sequence) == sequence  # no two with one hash
    assert len(set(seen.values())) == len(seen)  # and no two hashes of one


def test_lengths_in_any_order_and_alone() -> None:
    numbers = np.arange(40, dtype=np.uint64)
    together = hashes(numbers, [13, 5, 8, 5])
    assert sorted(together) == [5, 8, 13]
    for length, its in together.items():
        assert np.array_equal(its, hashes(numbers, [length])[length])
        assert len(np.unique(its)) == len(its)
    assert not np.array_equal(hashes(numbers[::-1], [5])[5], together[5][::-1])  # order counts


def test_places() -> None:
    known = np.array([3, 7, 2**63], np.uint64)
    assert places(np.array([7, 8, 2**63, 0, 2**64 - 1], np.uint64), known).tolist() == [1, -1, 2, -1, -1]
    assert places(np.array([7], np.uint64), known[:0]).tolist() == [-1]
    assert places(known[:0], known).tolist() == []
