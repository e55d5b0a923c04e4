"""Decisions are those of the rules as the paper states them, written down plainly: no bound, everything is counted."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.gopher_repetition import Sequences, ngrams
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.quality_spec import GopherRepetition
from llmfactory.data.clean.step import Drop, Kept, Outcome

OFF: dict[str, Any] = {
    "duplicate_lines": 1.0,
    "duplicate_paragraphs": 1.0,
    "duplicate_line_characters": 1.0,
    "duplicate_paragraph_characters": 1.0,
    "top_ngrams": [],
    "duplicate_ngrams": [],
}


def outcome(text: str, **options: Any) -> Outcome:
    return GopherRepetition(**options).build(None).apply(Page("a", text))  # type: ignore[arg-type]


def reason(text: str, **options: Any) -> str | None:
    found = outcome(text, **{**OFF, **options})
    return found.reason if isinstance(found, Drop) else None


def plain(page: Page, spec: GopherRepetition) -> str | None:
    """Rae et al. 2021, table A1, row by row."""
    text, words = page.text, page.words
    if not text:
        return "empty"
    for name, pieces, most, most_characters in (
        ("paragraphs", re.split("\n\n+", text.strip()), spec.duplicate_paragraphs, spec.duplicate_paragraph_characters),
        ("lines", re.split("\n+", text), spec.duplicate_lines, spec.duplicate_line_characters),
    ):
        again = [piece for i, piece in enumerate(pieces) if piece in pieces[:i]]
        if len(again) / len(pieces) > most:
            return f"duplicate {name}"
        if sum(map(len, again)) / len(text) > most_characters:
            return f"characters of duplicate {name}"
    chinese = sum(len(word) == 1 and "一" <= word <= "龥" for word in words) * 2 > len(words)
    space = "" if page.unspaced else " "
    for n, limit in enumerate(spec.top_ngrams, 2):
        size = round(1.6 * n) if chinese else n
        sequences = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        if sequences:
            count = max(sequences.count(sequence) for sequence in sequences)
            first = next(sequence for sequence in sequences if sequences.count(sequence) == count)
            if len(space.join(first)) * count / len(text) > limit and (count > 1 or not chinese):
                return f"most frequent {n} words"
    for n, limit in enumerate(spec.duplicate_ngrams, 5):
        size = round(1.6 * n) if chinese else n
        seen, characters, i = [], 0, 0
        while i + size <= len(words):
            sequence = words[i : i + size]
            if sequence in seen:
                characters += len("".join(sequence))
                i += size
            else:
                seen.append(sequence)
                i += 1
        if characters / len(text) > limit:
            return f"duplicate sequences of {n} words"
    return None


@pytest.mark.parametrize("chinese", [False, True])
def test_equals_the_rules(prose: Callable[..., str], chinese: bool) -> None:
    numbers, seen = random.Random(3), set()
    for _ in range(700):
        page = Page("a", prose(numbers, chinese)[:1500])
        slack = numbers.choice([0.1, 1.0, 1.0, 3.0])
        spec = GopherRepetition(
            duplicate_lines=min(1.0, 0.3 * slack),
            duplicate_paragraphs=min(1.0, 0.3 * slack),
            duplicate_line_characters=min(1.0, numbers.choice([0.02, 0.2, 1.0]) * slack),
            duplicate_paragraph_characters=min(1.0, numbers.choice([0.02, 0.2, 1.0]) * slack),
            top_ngrams=[
                share * slack for share in numbers.choice([(), (0.2, 0.18, 0.16), (0.3, 0.1, 0.05, 0.04), (0.3, 0.3, 0.02)])
            ],
            duplicate_ngrams=[
                share * slack for share in numbers.choice([(), (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), (0.3, 0.3, 0.05), (0.3, 0.3)])
            ],
        )
        found = spec.build(None).apply(page)  # type: ignore[arg-type]
        assert (found.reason if isinstance(found, Drop) else None) == plain(page, spec), page.text
        assert isinstance(found, Drop) or found == Kept(page.text)
        seen.add(plain(page, spec))
    assert len(seen) >= 11, "nearly every rule decides sometimes"


def test_the_bounds_of_longer_sequences_hold() -> None:
    numbers = random.Random(5)
    for _ in range(500):
        alphabet = ["a", "bb", "ccc", "dddddddd"][: numbers.randrange(1, 5)] + [f"w{i}" for i in range(numbers.randrange(12))]
        words = numbers.choices(alphabet, k=numbers.randrange(2, 60))
        shortest = Sequences.of(Page("a", " ".join(words)))
        for n in range(2, min(7, len(words) + 1)):
            counts = Counter(ngrams(words, n))
            assert max(count * len(" ".join(ngram)) for ngram, count in counts.items()) <= shortest.most_characters(n)
            again = {start for start, ngram in enumerate(ngrams(words, n)) if counts[ngram] > 1}
            assert again <= set(shortest.starts(words, n))


def test_the_paper_s_numbers() -> None:
    spec = GopherRepetition()
    assert (spec.duplicate_lines, spec.duplicate_paragraphs) == (0.3, 0.3)
    assert (spec.duplicate_line_characters, spec.duplicate_paragraph_characters) == (0.2, 0.2)
    assert spec.top_ngrams == [0.2, 0.18, 0.16]
    assert spec.duplicate_ngrams == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]


def test_duplicate_lines_and_duplicate_line_characters() -> None:
    text = "one two\nthree four\none two\nfive"
    assert (reason(text, duplicate_lines=0.25), reason(text, duplicate_lines=0.24)) == (None, "duplicate lines")
    share = 7 / len(text)
    assert reason(text, duplicate_line_characters=share) is None
    assert outcome(text, **{**OFF, "duplicate_line_characters": 0.2}) == Drop(
        "characters of duplicate lines", f"{share:.3f} > 0.2"
    )


def test_duplicate_paragraphs_and_duplicate_paragraph_characters() -> None:
    text = "\none\ntwo\n\nthree\n\n\none\ntwo\n\nfour\n"
    assert (reason(text, duplicate_paragraphs=0.25), reason(text, duplicate_paragraphs=0.24)) == (None, "duplicate paragraphs")
    assert reason(text, duplicate_paragraph_characters=7 / len(text)) is None
    assert reason(text, duplicate_paragraph_characters=0.2) == "characters of duplicate paragraphs"


def test_top_ngrams() -> None:
    text = "a cat " * 10 + "sees many other animals when walking through this wide forest"
    share = 50 / len(text)
    assert (reason(text, top_ngrams=[share]), reason(text, top_ngrams=[share - 0.01])) == (None, "most frequent 2 words")
    assert reason(text, top_ngrams=[1.0, 0.1]) == "most frequent 3 words"


def test_duplicate_ngrams() -> None:
    again = "five words that come twice"
    text = f"{again} and then {again} again, but nothing longer than these"
    share = (len(again) - 4) / len(text)
    assert (reason(text, duplicate_ngrams=[share]), reason(text, duplicate_ngrams=[share - 0.01])) == (
        None,
        "duplicate sequences of 5 words",
    )
    assert reason(text, duplicate_ngrams=[1.0, 0.0]) is None


def test_sequences_of_other_words_that_look_the_same_together_are_no_duplicates() -> None:
    assert reason("1 11 1 1 1 x 11 1 1 1 1 y", duplicate_ngrams=[0.0]) is None


def test_chinese() -> None:
    prose = "我们今天在学校里看了一本很有意思的书，书里说的是一个老人和他的猫的故事。大家都觉得不错，想再看一次。"
    assert outcome(prose) == Kept(prose)
    assert reason("春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", top_ngrams=[0.2, 0.18, 0.16]) is None
    assert isinstance(outcome("免费下载最新电影资源网站，" * 5 + prose), Drop)


def test_options_out_of_bounds() -> None:
    with pytest.raises(ConfigError, match=r"top_ngrams=\[1\.0,0\.1\]"):
        GopherRepetition(top_ngrams=[2.0, 0.1])
    with pytest.raises(ConfigError, match=r"duplicate_lines=1\.0"):
        GopherRepetition(duplicate_lines=1.2)
