"""n-gram hashes, against tuples of words."""

from __future__ import annotations

import random
import re
import tracemalloc
import unicodedata

import numpy as np
import pytest

from llmfactory.data.clean import shingles as module
from llmfactory.data.clean.characters import UNSPACED
from llmfactory.data.clean.dedup_spec import Unit
from llmfactory.data.clean.shingles import UNICODE, Chunk, marks, mixed, shingles

PIECES = ["a", "B", "ab", "ß", "É", "e\u0301", "7", "42", "中", "文", "か", "ｶ", "ไ", "的", "한국", "क्या", "😀", "\U00020000"]
BETWEEN = [" ", "  ", "\n", ", ", "。", "-", "_", "\t", "", "\u200d", "\ud800"]


def units(text: str) -> list[str]:
    """Letters, digits and their marks in runs; one by one in scripts without spaces."""
    found, before = [], False
    for c in (small if len(small := c.lower()) == 1 else c for c in text):
        inside = unicodedata.category(c)[0] in "LNM"
        alone = inside and re.match(f"[{UNSPACED}\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]", c) is not None
        if inside and before and not alone:
            found[-1] += c
        elif inside:
            found.append(c)
        before = inside and not alone
    return found


def grams(text: str, n: int, unit: Unit) -> list[tuple[str, ...]]:
    its = units(text) if unit is Unit.words else list("".join(units(text)))
    return [tuple(its[i : i + n]) for i in range(max(1, len(its) - n + 1))] if its else []


def hashed(texts: list[str], n: int, unit: Unit) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in texts]
    for chunk in shingles(texts, n, unit):
        for document, part in zip(chunk.documents.tolist(), np.split(chunk.hashes, chunk.starts[1:]), strict=True):
            assert len(part)
            found[document] += part.tolist()
    return found


def random_text(draw: random.Random, pieces: int) -> str:
    return "".join(draw.choice(PIECES) + draw.choice(BETWEEN) for _ in range(draw.randrange(pieces)))


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_each_n_gram_has_its_hash(n: int, unit: Unit) -> None:
    draw = random.Random(n)
    texts = ["", " ,.", "word", "中", "ab" * 40, *(random_text(draw, 60) for _ in range(150))]
    names: dict[int, tuple[str, ...]] = {}
    seen: dict[tuple[str, ...], int] = {}
    for text, hashes in zip(texts, hashed(texts, n, unit), strict=True):
        for value, gram in zip(hashes, grams(text, n, unit), strict=True):
            assert names.setdefault(value, gram) == gram
            assert seen.setdefault(gram, value) == value
    assert len(seen) > 20


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("n", [1, 3, 70])
def test_a_long_document_has_the_hashes_of_a_short_one(monkeypatch: pytest.MonkeyPatch, n: int, unit: Unit) -> None:
    draw = random.Random(1)
    texts = [random_text(draw, 80) for _ in range(100)] + [" " * 200 + "end", "end" + "." * 200, "a b" + " " * 99 + "c"]
    whole = hashed(texts, n, unit)
    monkeypatch.setattr(module, "CHARACTERS", 40)
    assert any(len(text) > 80 for text in texts)
    assert hashed(texts, n, unit) == whole


def test_a_word_longer_than_a_piece_is_cut() -> None:
    text = "x" * (module.CHARACTERS * 2 + 5)
    assert [len(part) for part in hashed([text, "b"], 1, Unit.words)] == [3, 1]
    assert len(hashed([text], 5, Unit.characters)[0]) == len(text) - 4


def test_neighbors_do_not_matter() -> None:
    draw = random.Random(2)
    texts = [random_text(draw, 200) for _ in range(50)]
    assert hashed(texts, 3, Unit.words) == [hashed([text], 3, Unit.words)[0] for text in texts]


def test_case_and_marks_do_not_matter_and_order_does() -> None:
    one, same, other = hashed(["The cat -- sat; on THE mat.", "the cat sat\non the mat", "the mat sat on the cat"], 2, Unit.words)
    assert one == same
    assert set(one) != set(other)


def test_a_document_of_megabytes_needs_little_memory() -> None:
    text = "some words of a long text " * 200_000
    tracemalloc.start()
    total = sum(len(chunk.hashes) for chunk in shingles([text], 5, Unit.words))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 1_200_000 - 4
    assert peak < 40e6


def test_all_bits_of_a_hash_are_random() -> None:
    (chunk,) = shingles([" ".join(map(str, range(4000)))], 1, Unit.words)
    assert isinstance(chunk, Chunk)
    bits = np.unpackbits(chunk.hashes.view(np.uint8)).reshape(4000, 64)
    assert abs(bits.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / 4000**0.5
    correlation = np.corrcoef(bits.T) - np.eye(64)
    assert abs(correlation).max() < 5 / 4000**0.5


def test_mixing_is_one_to_one() -> None:
    values = np.concatenate([np.arange(20_000, dtype=np.uint64), np.arange(20_000, dtype=np.uint64) << np.uint64(40)])
    assert len(np.unique(mixed(values))) == len(np.unique(values))


def test_what_is_no_part_of_a_word() -> None:
    none = "".join(chr(low) for low, _ in marks())
    assert not any(unicodedata.category(c)[0] in "LNM" for c in none)
    assert any(low <= ord("。") <= high for low, high in marks())
    assert not any(low <= ord("é") <= high for low, high in marks())
    assert unicodedata.unidata_version == UNICODE
