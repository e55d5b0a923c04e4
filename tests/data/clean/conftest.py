"""A comparison over texts in memory, in several partitions and batches, as the pipeline runs it over shards."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from llmfactory.data.clean.comparison import Comparison, Copies
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Kept, Outcome

Compare = Callable[..., list[Outcome]]


@pytest.fixture
def compare() -> Compare:
    """`compare(comparison, texts, partitions=3, batch=2)`: what becomes of each text."""
    return _compare


def _compare(comparison: Comparison, texts: Sequence[str], partitions: int = 3, batch: int = 2) -> list[Outcome]:
    pages = [Page(str(i), text) for i, text in enumerate(texts)]
    parts = [(at, comparison.keys(pages[at : at + batch])) for at in range(0, len(pages), batch)]
    document = np.concatenate([at + its.page for at, its in parts])
    item, key = np.concatenate([its.item for _, its in parts]), np.concatenate([its.key for _, its in parts])
    assert key.dtype == np.uint64
    assert len(key) == len(document) == len(item)
    rows = [its.evidence for _, its in parts if its.evidence is not None]
    table = np.concatenate(rows) if rows else np.empty(0)
    assert not rows or len(table) == len(pages)
    found = []
    for part in range(partitions):
        mine = np.flatnonzero(key % np.uint64(partitions) == part)
        order = mine[np.lexsort((item[mine], document[mine], key[mine]))]
        found.append(comparison.copies(key[order], document[order], item[order], table.__getitem__))
    together = Copies(*(np.concatenate([getattr(its, name) for its in found]) for name in ("document", "item", "first")))
    final = comparison.verdicts(together, table.__getitem__)
    assert (final.first <= final.document).all()
    items = [np.unique(final.item[final.document == i]) for i in range(len(pages))]
    return [comparison.apply(page, its) if len(its) else Kept(page.text) for page, its in zip(pages, items, strict=True)]


WORDS = [
    "the",
    "be",
    "to",
    "of",
    "and",
    "that",
    "have",
    "with",
    "a",
    "model",
    "reads",
    "text",
    "in",
    "lines,",
    "which",
    "it.",
    "keeps!",
]
WORDS += ["(or)", "not?", "3.14", "--", "•", "#tag", "it's", "...", "é"]
CHINESE = "的是在不了有和一我们今天去看书，很好。真的吗？他说：「对！」"


@pytest.fixture
def prose() -> Callable[..., str]:
    """`prose(numbers)`: a text of random words and lines, of any length, with repetitions of all sizes; `chinese`: among them also
    Chinese characters."""
    return _prose


def _prose(numbers: random.Random, chinese: bool = False) -> str:
    few = numbers.choice([3, 8, len(WORDS)])
    words = numbers.sample(WORDS, few)
    if chinese:
        words += ["".join(numbers.choices(CHINESE, k=numbers.randrange(1, 9))) for _ in range(numbers.choice([1, few, 4 * few]))]
    words += [f"word{number}" for number in range(numbers.choice([0, 5, 60, 300]))]
    text: list[str] = []
    for _ in range(numbers.choice([0, 1, 4, 20])):
        if text and numbers.random() < 0.25:
            start = numbers.randrange(len(text))
            text += text[start : start + numbers.randrange(1, 40)]
        for _ in range(numbers.choice([1, 5, 20])):
            text += [
                numbers.choice(words),
                numbers.choice([" ", " ", " ", " ", " ", "\n", "\n\n", " \n", "…\n", ".\n\n\n", "\r\n"]),
            ]
    return "".join(text)
