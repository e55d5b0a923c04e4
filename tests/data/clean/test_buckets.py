"""Comparisons within buckets."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llmfactory.data.clean.buckets import PAIRS, alike_in_buckets, one_of_each_cluster
from llmfactory.data.clean.comparison import Copies, Int64


@pytest.mark.parametrize("seed", range(5))
def test_every_document_that_is_like_an_earlier_one_of_its_bucket_has_a_pair(seed: int) -> None:
    draw = random.Random(seed)
    kind = np.array([draw.randrange(6) for _ in range(200)])  # documents of one kind are alike
    rows = sorted({(draw.randrange(12), draw.randrange(200)) for _ in range(400)})
    key, document = np.array(rows).T
    asked = []

    def alike(left: Int64, right: Int64) -> np.ndarray:
        assert (left < right).all()
        asked.extend(zip(left.tolist(), right.tolist(), strict=True))
        return kind[left] == kind[right]

    found = alike_in_buckets(key.astype(np.uint64), document, alike)
    expected = {}
    for bucket in range(12):
        firsts: dict[int, int] = {}
        for number in document[key == bucket].tolist():
            first = firsts.setdefault(int(kind[number]), number)
            if first != number:
                expected[first, number] = True
    assert sorted(expected) == list(zip(found.first.tolist(), found.document.tolist(), strict=True))
    assert not found.item.any()


def test_equal_documents_take_few_comparisons() -> None:
    n, calls = 3 * PAIRS, []

    def alike(left: Int64, right: Int64) -> np.ndarray:
        calls.append(len(left))
        return np.ones(len(left), bool)

    found = alike_in_buckets(np.repeat(np.arange(2, dtype=np.uint64), n), np.tile(np.arange(n), 2), alike)
    assert len(found.document) == n - 1
    assert sum(calls) == n - 1  # two buckets of the same documents: compared once
    assert max(calls) <= PAIRS


def test_a_document_is_no_copy_of_itself() -> None:
    found = alike_in_buckets(np.zeros(4, np.uint64), np.array([3, 3, 5, 5]), lambda left, right: np.ones(len(left), bool))
    assert (found.document.tolist(), found.first.tolist()) == ([5], [3])


def test_no_keys_and_none_alike() -> None:
    def never(left: Int64, right: Int64) -> np.ndarray:
        return np.zeros(len(left), bool)

    empty = np.empty(0, np.int64)
    assert len(alike_in_buckets(empty.astype(np.uint64), empty, never).document) == 0
    assert len(alike_in_buckets(np.zeros(9, np.uint64), np.arange(9), never).document) == 0


def test_the_first_of_a_cluster_stays() -> None:
    pairs = Copies(np.array([4, 9, 7]), np.zeros(3, np.int64), np.array([2, 4, 5]))
    final = one_of_each_cluster(pairs)
    assert dict(zip(final.document.tolist(), final.first.tolist(), strict=True)) == {4: 2, 9: 2, 7: 5}
