"""Lines that come again (pieces.py), against plain loops, and what becomes of documents that lose some (remains.py)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.clean.dedup_spec import Lines
from llmfactory.data.clean.folded import folded
from llmfactory.data.clean.lines import LineComparison
from llmfactory.data.clean.remains import remains
from llmfactory.data.clean.step import Drop, Kept, Outcome

Compare = Callable[..., list[Outcome]]


def lines(**options: Any) -> LineComparison:
    return LineComparison(Lines(**{"min_characters": 3, "min_left": 0.0, **options}))


def reference(texts: list[str], spec: Lines) -> list[str | None]:
    """What is left of each text; None: nothing."""
    where: dict[str, set[int]] = {}
    for number, text in enumerate(texts):
        for line in text.splitlines():
            where.setdefault(folded(line, spec), set()).add(number)
    seen: set[str] = set()
    found: list[str | None] = []
    for number, text in enumerate(texts):
        left = []
        for line in text.splitlines(keepends=True):
            form = folded(line, spec)
            first = min(where[form]) == number and (spec.documents > 1 or form not in seen)
            seen.add(form)
            if len(form) < spec.min_characters or len(where[form]) < spec.documents or first:
                left.append(line)
        whole = "".join(left)
        found.append(text if whole == text else whole.strip("\r\n") if whole.strip() else None)
    return found


@pytest.mark.parametrize("documents", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_reference(compare: Compare, documents: int, seed: int) -> None:
    draw = random.Random(seed)
    pool = [
        "one line",
        "One  line",
        "other",
        "中文的一行",
        "ab",
        "",
        " ",
        "x1y",
        "x2y",
        "\u3000three",
        *map(str, range(100, 200)),
    ]
    ends = ["\n", "\n", "\r\n", "\u2028"]
    texts = ["".join(draw.choice(pool) + draw.choice(ends) for _ in range(draw.randrange(1, 12))) for _ in range(60)]
    for options in ({}, {"ignore_case": True}, {"ignore_digits": True, "ignore_marks": True}, {"min_characters": 6}):
        comparison = lines(documents=documents, **options)
        expected = reference(texts, comparison.spec)
        for partitions, batch in ((1, 100), (5, 7)):
            outcomes = compare(comparison, texts, partitions, batch)
            assert [outcome.text if isinstance(outcome, Kept) else None for outcome in outcomes] == expected
    left = [text for text in expected if text is not None]
    if documents == 1:  # a line that was too rare before stays so
        assert compare(comparison, left) == [Kept(text) for text in left]


def test_later_copies_go_and_are_counted(compare: Compare) -> None:
    texts = ["menu\nabout cats\nmenu\n", "about dogs\nmenu", "menu\nabout cows\nmenu\nlast"]
    assert compare(lines(), texts) == [
        Kept("menu\nabout cats\nmenu\n"),
        Kept("about dogs", {"repeated lines": 1}),
        Kept("about cows\nlast", {"repeated lines": 2}),
    ]
    assert compare(lines(documents=1), texts)[0] == Kept("menu\nabout cats", {"repeated lines": 1})
    assert compare(lines(documents=4), texts) == [Kept(text) for text in texts]
    assert compare(lines(documents=3), texts)[1] == Kept("about dogs", {"repeated lines": 1})


def test_a_refrain_within_one_document_is_no_copy(compare: Compare) -> None:
    poem = "refrain\nverse one\nrefrain\nverse two\nrefrain"
    assert compare(lines(), [poem, "something else"])[0] == Kept(poem)
    assert compare(lines(documents=1), [poem])[0] == Kept("refrain\nverse one\nverse two", {"repeated lines": 2})


def test_short_lines_stay(compare: Compare) -> None:
    texts = ["yes\nlong line", "yes\nlong line\nmore", "是的\n好"]
    assert compare(lines(min_characters=4), texts)[1] == Kept("yes\nmore", {"repeated lines": 1})
    assert compare(lines(min_characters=20), texts)[1] == Kept(texts[1])
    assert compare(lines(min_characters=5), ["a   b\nx", "a   b\ny"])[1] == Kept("a   b\ny")  # three characters in its form


def test_min_left(compare: Compare) -> None:
    texts = ["0123456789\n", "0123456789\nabc", "0123456789", "0123456789\n 　\n"]
    assert compare(lines(min_left=0.25), texts)[1] == Drop("little but repeated lines", "21% left")
    assert compare(lines(min_left=0.2), texts)[1:] == [
        Kept("abc", {"repeated lines": 1}),
        Drop("nothing but repeated lines"),
        Drop("nothing but repeated lines"),
    ]


def test_remains() -> None:
    assert remains("abcd", "ab", "what", 2, 0.5) == Kept("ab", {"what": 2})
    assert remains("abcd", "a", "what", 2, 0.5) == Drop("little but what", "25% left")
    assert remains("abcd", "", "what", 1, 0.0) == Drop("nothing but what")


def test_empty_texts_and_no_lines(compare: Compare) -> None:
    assert compare(lines(), ["", "\n\n", "a", "a"]) == [Kept(""), Kept("\n\n"), Kept("a"), Kept("a")]
    assert len(lines().keys([]).key) == 0


def test_impossible_numbers_and_fingerprint() -> None:
    with pytest.raises(ConfigError, match=r"(?s)min_characters.*documents.*min_left"):
        Lines(min_characters=0, documents=0, min_left=2.0)
    assert lines().fingerprint() != lines(documents=3).fingerprint()
