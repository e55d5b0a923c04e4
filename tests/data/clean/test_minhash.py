"""MinHash: signatures against plain loops, estimates and buckets against their formulas, and what is taken out."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.dedup_spec import Minhash, Unit, Verify
from llmfactory.data.clean.minhash import MinhashComparison
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.shingles import shingles
from llmfactory.data.clean.step import Drop, Kept, Outcome

Compare = Callable[..., list[Outcome]]
WORDS = [f"word{i}" for i in range(5000)]
HAN = [chr(0x4E00 + i) for i in range(3000)]


def pair(draw: random.Random, shared: int, single: int) -> tuple[str, str]:
    """Two texts of different words, with `shared` in both and `single` in each alone."""
    words = draw.sample(WORDS, shared + 2 * single)
    texts = [words[:shared] + words[shared : shared + single], words[:shared] + words[shared + single :]]
    for text in texts:
        draw.shuffle(text)
    return " ".join(texts[0]), " ".join(texts[1])


def edited(draw: random.Random, words: list[str], share: float) -> list[str]:
    return [draw.choice(WORDS + HAN) if draw.random() < share else word for word in words]


def kept(outcomes: list[Outcome]) -> list[int]:
    return [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Kept)]


@pytest.mark.parametrize("unit", list(Unit))
def test_signatures_are_the_least_products(unit: Unit) -> None:
    spec = Minhash(ngram=3, unit=unit, bands=5, rows=5, seed=3)
    comparison = MinhashComparison(spec)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(30))) for _ in range(40)]
    signatures, some = comparison.signatures(texts)
    for text, signature, has in zip(texts, signatures, some, strict=True):
        hashes = [value >> 32 for chunk in shingles([text], 3, unit) for value in chunk.hashes.tolist()]
        least = [min((a * x % 2**32 for x in hashes), default=0xFFFFFFFF) for a in comparison.factors.tolist()]
        assert signature.tolist() == least
        assert has == bool(hashes)
    assert len(set(comparison.factors.tolist())) == 25
    assert all(a % 2 for a in comparison.factors.tolist())


def test_a_long_document_s_signature_is_of_all_its_pieces() -> None:
    words = [f"word{i}" for i in range(30_000)]
    comparison = MinhashComparison(Minhash(ngram=1))
    (whole, *parts), _ = comparison.signatures([" ".join(words), *(" ".join(words[at::3]) for at in range(3))])
    assert np.array_equal(whole, np.minimum.reduce(parts))
    assert not np.array_equal(whole, parts[2])


@pytest.mark.parametrize(("shared", "single"), [(0, 40), (10, 45), (50, 25), (80, 10), (400, 50), (97, 1)])
def test_the_share_of_equal_hashes_is_the_similarity(shared: int, single: int) -> None:
    """Unbiased, and no more uncertain than independent hash functions are."""
    comparison = MinhashComparison(Minhash(ngram=1, bands=32, rows=8))
    draw = random.Random(shared)
    j, pairs = shared / (shared + 2 * single), 150
    texts = [text for _ in range(pairs) for text in pair(draw, shared, single)]
    signatures, _ = comparison.signatures(texts)
    equal = (signatures[::2] == signatures[1::2]).mean(axis=1)
    error = (j * (1 - j) / 256) ** 0.5
    assert abs(equal.mean() - j) <= 4 * error / pairs**0.5
    assert equal.std() <= 1.2 * error


@pytest.mark.parametrize(("bands", "rows"), [(20, 6), (14, 8), (5, 3)])
@pytest.mark.parametrize(("shared", "single"), [(30, 30), (60, 20), (70, 15), (80, 10), (95, 3)])
def test_two_share_a_bucket_as_often_as_the_formula_says(bands: int, rows: int, shared: int, single: int) -> None:
    draw = random.Random(bands)
    s, pairs = shared / (shared + 2 * single), 400
    chance = 1 - (1 - s**rows) ** bands
    texts = [text for _ in range(pairs) for text in pair(draw, shared, single)]
    keys = MinhashComparison(Minhash(ngram=1, bands=bands, rows=rows)).keys([Page("", text) for text in texts])
    table = keys.key.reshape(pairs, 2, bands)
    together = (table[:, 0] == table[:, 1]).any(axis=1).mean()
    assert abs(together - chance) <= 4.5 * (chance * (1 - chance) / pairs) ** 0.5 + 1e-3
    assert len(np.unique(table[:, 0])) > 0.99 * pairs * bands


def test_bands_of_equal_hashes_are_told_apart() -> None:
    comparison = MinhashComparison(Minhash(bands=50, rows=1))
    comparison.factors[:] = 3
    assert len(set(comparison.keys([Page("", "some words")]).key.tolist())) == 50


def corpus(draw: random.Random, alphabet: list[str], space: str) -> tuple[list[str], set[int]]:
    """Texts in random order, and the numbers of those that are near copies of an earlier one."""
    groups = []
    for group in range(40):
        words = draw.choices(alphabet, k=draw.randrange(150, 300))
        groups += [(group, words)] + [(group, edited(draw, words, 0.004)) for _ in range(group % 4)]
    draw.shuffle(groups)
    seen: set[int] = set()
    copies = {i for i, (group, _) in enumerate(groups) if group in seen or seen.add(group)}
    return [space.join(words) for _, words in groups], copies


@pytest.mark.parametrize("verify", list(Verify))
@pytest.mark.parametrize(("alphabet", "space"), [(WORDS, " "), (HAN, "")], ids=["english", "chinese"])
def test_planted_copies_go_and_the_first_ones_stay(compare: Compare, verify: Verify, alphabet: list[str], space: str) -> None:
    texts, copies = corpus(random.Random(1), alphabet, space)
    comparison = MinhashComparison(Minhash(verify=verify))
    outcomes = compare(comparison, texts)
    assert {i for i, outcome in enumerate(outcomes) if isinstance(outcome, Drop)} == copies
    left = [texts[i] for i in kept(outcomes)]
    assert kept(compare(comparison, left)) == list(range(len(left)))
    for partitions, batch in ((1, 1000), (7, 1), (2, 13)):
        assert compare(comparison, texts, partitions, batch) == outcomes


def test_texts_without_words_and_with_one(compare: Compare) -> None:
    texts = ["", "", " ", "...", "。", "one", "One!", "two", "one two", "中", "中。", "文", "\ud800", "😀"]
    assert kept(compare(MinhashComparison(Minhash()), texts)) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13]
    assert compare(MinhashComparison(Minhash()), [""]) == [Kept("")]
    keys = MinhashComparison(Minhash()).keys([])
    assert len(keys.key) == 0
    assert keys.evidence is not None


def test_clusters_hang_together(compare: Compare) -> None:
    """The first is like the second, the second like the third; the first and the third are not alike."""
    words = WORDS[:100]
    chain = [" ".join(words[at : at + 80]) for at in (0, 8, 16)]
    comparison = MinhashComparison(Minhash(ngram=1, bands=60, rows=2, verify=Verify.sketch, threshold=0.8))
    assert kept(compare(comparison, [chain[0], chain[2]])) == [0, 1]
    assert kept(compare(comparison, chain)) == [0]
    assert kept(compare(comparison, [chain[2], "other", chain[0], chain[1]])) == [0, 1]


@pytest.mark.parametrize("verify", [Verify.signature, Verify.sketch])
def test_verify_and_threshold_decide(compare: Compare, verify: Verify) -> None:
    texts = list(pair(random.Random(5), 70, 15))  # 0.7
    for threshold, left in ((0.8, [0, 1]), (0.6, [0])):
        comparison = MinhashComparison(Minhash(ngram=1, bands=100, rows=2, verify=verify, threshold=threshold))
        assert kept(compare(comparison, texts)) == left
    assert kept(compare(MinhashComparison(Minhash(ngram=1, bands=100, rows=2, verify=Verify.none)), texts)) == [0]


def test_a_sketch_is_exact_at_the_threshold(compare: Compare) -> None:
    for shared, single, left in ((80, 10, [0]), (79, 10, [0, 1])):
        comparison = MinhashComparison(Minhash(ngram=1, bands=100, rows=2, verify=Verify.sketch))
        assert kept(compare(comparison, list(pair(random.Random(6), shared, single)))) == left


@pytest.mark.parametrize("change", [{"ngram": 1}, {"unit": Unit.characters}, {"bands": 3}, {"rows": 7}, {"seed": 2}])
def test_ngram_unit_bands_rows_and_seed_change_the_keys(change: dict[str, int]) -> None:
    pages = [Page("", "some words of a text that is long enough")]
    one, other = MinhashComparison(Minhash()), MinhashComparison(Minhash(**change))
    assert one.keys(pages).key.tolist() == MinhashComparison(Minhash()).keys(pages).key.tolist()
    assert one.keys(pages).key.tolist() != other.keys(pages).key.tolist()
    assert one.fingerprint() != other.fingerprint()


def test_a_document_of_megabytes_needs_little_memory() -> None:
    page = Page("", "some words of a long text " * 200_000)
    comparison = MinhashComparison(Minhash(verify=Verify.sketch))
    tracemalloc.start()
    keys = comparison.keys([page])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(keys.key) == 20
    assert peak < 50e6


def test_impossible_numbers() -> None:
    with pytest.raises(ConfigError, match=r"(?s)ngram.*bands.*rows.*threshold.*seed"):
        Minhash(ngram=0, bands=0, rows=0, threshold=1.1, seed=-1)
