"""Jaccard similarity from the smallest hashes of two sets."""

from __future__ import annotations

import numpy as np
import pytest

from llmfactory.data.clean import sketch as module
from llmfactory.data.clean.dedup_spec import Unit
from llmfactory.data.clean.shingles import Chunk, shingles
from llmfactory.data.clean.sketch import SKETCH, Sketches, jaccard


def similarity(left: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """From sketches, and exactly."""
    sketches = Sketches(2)
    for number, its in enumerate((left, right)):
        sketches.add(Chunk(its.astype(np.uint64) << np.uint64(32), np.array([number]), np.zeros(1, np.int64)))
    both = len(np.intersect1d(left, right))
    return float(jaccard(sketches.table[:1], sketches.table[1:])[0]), both / (len(np.union1d(left, right)))


@pytest.mark.parametrize("sizes", [(1, 1), (3, 700), (500, 500), (600, 400)])
def test_it_is_exact_for_few(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for share in (0.0, 0.3, 0.8, 1.0):
        left, fresh = (generator.choice(1 << 31, size, replace=False) for size in sizes)
        right = np.concatenate([generator.choice(left, int(share * min(sizes)), replace=False), fresh])[: sizes[1]]
        found, exact = similarity(left, right)
        assert found == pytest.approx(exact)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_it_is_close_for_many(share: float) -> None:
    generator = np.random.default_rng(1)
    errors = []
    for size in (1500, 20_000):
        for _ in range(20):
            every = generator.choice(1 << 31, size, replace=False)
            common = int(share * size)
            middle = (common + size) // 2
            found, exact = similarity(every[:middle], np.concatenate([every[:common], every[middle:]]))
            assert exact == pytest.approx(share, abs=0.002)
            errors.append(found - exact)
    error = (share * (1 - share) / SKETCH) ** 0.5
    assert abs(np.mean(errors)) < 4 * error / len(errors) ** 0.5
    assert np.std(errors) < 1.5 * error


def test_repeated_hashes_count_once_and_a_document_may_come_in_pieces() -> None:
    text = " ".join(map(str, range(3000)))
    whole, doubled = Sketches(1), Sketches(1)
    for chunk in shingles([text], 1, Unit.words):
        whole.add(chunk)
        for part in (chunk.hashes[1000:], chunk.hashes[:1700], chunk.hashes[500:510]):
            doubled.add(Chunk(part, chunk.documents, chunk.starts))
    assert np.array_equal(whole.table, doubled.table)
    assert (np.diff(whole.table.astype(np.int64)) > 0).all()


def test_the_largest_hash_is_a_hash() -> None:
    assert similarity(np.array([0xFFFFFFFF, 1]), np.array([0xFFFFFFFF, 2]))[0] == pytest.approx(1 / 3)
    nothing = Sketches(2).table
    assert jaccard(nothing[:1], nothing[1:]).tolist() == [0.0]
    assert module.NOTHING == 0xFFFFFFFF
