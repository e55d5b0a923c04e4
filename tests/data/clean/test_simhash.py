"""SimHash: fingerprints against plain loops, the pigeonhole, and what is taken out."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.dedup_spec import Simhash, Unit
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.shingles import mixed, shingles
from llmfactory.data.clean.simhash import SimhashComparison
from llmfactory.data.clean.step import Drop, Kept, Outcome

Compare = Callable[..., list[Outcome]]
WORDS = [f"word{i}" for i in range(3000)]
HAN = [chr(0x4E00 + i) for i in range(3000)]


def kept(outcomes: list[Outcome]) -> list[int]:
    return [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Kept)]


def ones(values: np.ndarray) -> np.ndarray:
    """How many bits of each are set."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def test_fingerprints_are_signs_of_sums() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS[:20], k=draw.randrange(30))) for _ in range(40)]
    comparison = SimhashComparison(Simhash(ngram=2, seed=7))
    found, some = comparison.fingerprints(texts)
    seed = int(mixed(np.array([7], np.uint64))[0])
    for text, fingerprint, has in zip(texts, found.tolist(), some.tolist(), strict=True):
        hashes = [v for chunk in shingles([text], 2, Unit.words) for v in mixed(chunk.hashes ^ np.uint64(seed)).tolist()]
        sums = [sum(1 if value >> bit & 1 else -1 for value in hashes) for bit in range(64)]
        assert fingerprint == sum(1 << bit for bit in range(64) if sums[bit] > 0)
        assert has == bool(hashes)


def test_a_long_document_s_fingerprint_is_of_all_its_pieces() -> None:
    draw = random.Random(1)
    text = " ".join(draw.choices(WORDS, k=40_000))
    comparison = SimhashComparison(Simhash(ngram=1))
    (value,), _ = comparison.fingerprints([text])
    sums = np.zeros(64)
    for chunk in shingles(text.split(), 1, Unit.words):
        bits = np.unpackbits(mixed(chunk.hashes ^ comparison.seed).view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        sums += 2.0 * bits.sum(axis=0) - len(bits)
    assert int(value) == sum(1 << bit for bit in range(64) if sums[bit] > 0)


def test_different_bits_follow_the_angle() -> None:
    draw = random.Random(2)
    words = [draw.sample(WORDS, 300) for _ in range(200)]
    texts = [" ".join(text) for its in words for text in (its[:200], its[100:])]  # a right angle would be 32 bits
    found, _ = SimhashComparison(Simhash(ngram=1)).fingerprints(texts)
    differ = ones(found[::2] ^ found[1::2])
    expected = 64 * np.arccos(100 / 200) / np.pi
    assert abs(differ.mean() - expected) < 4 * 4 / 200**0.5


@pytest.mark.parametrize(("distance", "blocks"), [(0, 1), (1, 3), (3, 4), (3, 5), (3, 6), (7, 9)])
def test_any_two_that_are_near_share_a_key(monkeypatch: pytest.MonkeyPatch, distance: int, blocks: int) -> None:
    draw = random.Random(distance)
    comparison = SimhashComparison(Simhash(distance=distance, blocks=blocks))
    values = np.array([draw.getrandbits(64) for _ in range(300)], np.uint64)
    far = values.copy()
    for i in range(300):
        for bit in draw.sample(range(64), distance):
            far[i] ^= np.uint64(1 << bit)
    both = np.concatenate([values, far])
    monkeypatch.setattr(comparison, "fingerprints", lambda texts: (both, np.ones(600, bool)))
    keys = comparison.keys([Page("", "")] * 600)
    table = keys.key.reshape(600, -1)
    assert (table[:300] == table[300:]).any(axis=1).all()
    assert ones(comparison.masks).sum() >= len(comparison.masks) * 64 * (blocks - distance) // blocks - 64
    order = np.lexsort((keys.item, keys.page, keys.key))
    found = comparison.copies(keys.key[order], keys.page[order], keys.item[order], both.__getitem__)
    assert {(i, i + 300) for i in range(300)} <= set(zip(found.first.tolist(), found.document.tolist(), strict=True))
    assert (ones(both[found.first] ^ both[found.document]) <= distance).all()


@pytest.mark.parametrize(("alphabet", "space"), [(WORDS, " "), (HAN, "")], ids=["english", "chinese"])
def test_planted_copies_go_and_the_first_ones_stay(compare: Compare, alphabet: list[str], space: str) -> None:
    draw = random.Random(3)
    originals = [draw.choices(alphabet, k=600) for _ in range(40)]
    texts = [space.join(words) for words in originals]
    texts += [text + "!" for text in texts[::2]] + [space.join([*words[:599], alphabet[0]]) for words in originals[1::2]]
    comparison = SimhashComparison(Simhash())
    outcomes = compare(comparison, texts)
    assert kept(outcomes)[:40] == list(range(40))
    assert len(kept(outcomes)) <= 42  # one word of 600 changes 0.7 bits on average, seldom more than three
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, Drop)} == {"nearly the same as an earlier document"}
    for partitions, batch in ((1, 1000), (7, 1)):
        assert compare(comparison, texts, partitions, batch) == outcomes
    left = [texts[i] for i in kept(outcomes)]
    assert len(kept(compare(comparison, left))) == len(left)


def test_texts_without_words_and_with_one(compare: Compare) -> None:
    texts = ["", "", "...", "one", "One!", "two", "中", "中。", "文", "\ud800"]
    assert kept(compare(SimhashComparison(Simhash()), texts)) == [0, 1, 2, 3, 5, 6, 8, 9]
    assert len(SimhashComparison(Simhash()).keys([]).key) == 0


@pytest.mark.parametrize(
    "change", [{"ngram": 1}, {"unit": Unit.characters}, {"distance": 2, "blocks": 4}, {"blocks": 4}, {"seed": 2}]
)
def test_ngram_unit_distance_blocks_and_seed_change_the_keys(change: dict[str, int]) -> None:
    pages = [Page("", "some words of a text that is long enough")]
    one, other = SimhashComparison(Simhash()), SimhashComparison(Simhash(**change))
    assert one.keys(pages).key.tolist() != other.keys(pages).key.tolist()
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(("distance", "left"), [(0, 2), (64 // 5, 1)])
def test_distance_decides(compare: Compare, distance: int, left: int) -> None:
    words = WORDS[:400]
    texts = [" ".join(words), " ".join([*words[:380], *WORDS[1000:1020]])]
    assert len(kept(compare(SimhashComparison(Simhash(distance=distance, blocks=distance + 1)), texts))) == left


def test_impossible_numbers() -> None:
    with pytest.raises(ConfigError, match=r"blocks=5"):
        Simhash(blocks=3)
    with pytest.raises(ConfigError, match=r"(?s)ngram.*distance.*seed"):
        Simhash(ngram=0, distance=17, seed=-1, blocks=18)
