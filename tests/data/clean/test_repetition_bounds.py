"""A page that is called harmless is; one that is not is counted word by word."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from llmfactory.data.clean import repetition_bounds
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import GopherRepetition
from llmfactory.data.clean.repetition_bounds import harmless
from llmfactory.data.clean.step import Kept


def shares(page: Page, n: int) -> tuple[float, float]:
    """Of the characters: those of the most frequent sequence, with spaces, and those of sequences that stood above already."""
    words = page.words
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    top = max((count * len(" ".join(ngram)) for ngram, count in counts.items()), default=0)
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        ngram = tuple(words[i : i + n])
        covered |= set(range(i, i + n)) if ngram in seen else set()
        seen.add(ngram)
    return top / len(page.text), sum(len(words[i]) for i in covered) / len(page.text)


@pytest.mark.parametrize("together", [5, 100, repetition_bounds.WORDS])
@pytest.mark.parametrize("bits", [3, repetition_bounds.BITS])
def test_harmless_pages_are(prose: Callable[..., str], monkeypatch: pytest.MonkeyPatch, together: int, bits: int) -> None:
    """Also where all hashes fall together and where a page is a batch of its own."""
    monkeypatch.setattr(repetition_bounds, "WORDS", together)
    monkeypatch.setattr(repetition_bounds, "BITS", bits)
    numbers = random.Random(0)
    pages = [Page("a", prose(numbers)[:1200]) for _ in range(150)] + [Page("a", text) for text in ("", " ", "a", "a a", "a b c")]
    sure = 0
    for top, duplicate in (
        ([(2, 0.2), (3, 0.18), (4, 0.16)], []),
        ([], [(5, 0.15), (6, 0.1)]),
        ([(2, 0.05)], [(5, 0.02), (6, 0.5)]),
        ([(2, 0.5), (3, 0.5), (7, 0.3)], [(5, 0.6)]),
    ):
        found = harmless(pages, top, duplicate)
        sure += sum(found)
        for page, harmful in zip(pages, (not each for each in found), strict=True):
            assert harmful or all(shares(page, n)[0] <= share for n, share in top)
            assert harmful or all(shares(page, n)[1] <= share for n, share in duplicate)
    assert sure > 100 or bits == 3


def test_usual_pages_are_seen_to_be_harmless() -> None:
    numbers = random.Random(1)
    pages = [Page("a", " ".join(f"word{numbers.randrange(numbers.choice([20, 500]))}" for _ in range(400))) for _ in range(20)]
    assert sum(harmless(pages, [(2, 0.2), (3, 0.18)], [(5, 0.1)])) > 15


@pytest.mark.parametrize("chinese", [False, True])
def test_many_at_once_are_as_one_by_one(prose: Callable[..., str], chinese: bool) -> None:
    numbers = random.Random(2)
    texts: Sequence[str] = ["", "\n", *(prose(numbers, chinese) for _ in range(300)), "a b c d e f " * 3]
    for spec in (GopherRepetition(), GopherRepetition(top_ngrams=[]), GopherRepetition(duplicate_ngrams=[])):
        step = spec.build(None)  # type: ignore[arg-type]
        outcomes = step.apply_many([Page("a", text) for text in texts])
        assert outcomes == [step.apply(Page("a", text)) for text in texts]
        assert any(isinstance(outcome, Kept) for outcome in outcomes)
        assert not all(isinstance(outcome, Kept) for outcome in outcomes)
    assert step.apply_many([]) == []


def test_counts_are_never_too_small() -> None:
    numbers = np.random.default_rng(0)
    for size in (1, 2, 50, 3000):
        hashes = numbers.integers(0, size // 2 + 1, size).astype(np.uint64)
        true = Counter(hashes.tolist())
        found = repetition_bounds._counts(hashes)
        assert all(count >= true[key] for key, count in zip(hashes.tolist(), found.tolist(), strict=True))
        assert found.sum() <= 1.5 * sum(true[key] for key in hashes.tolist())
