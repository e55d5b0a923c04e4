"""Places in a text, against loops over all pairs."""

from __future__ import annotations

import random

import pytest

from llmfactory.data.clean.spans import Span, added, disjoint, lowered


def over(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def drawn(draw: random.Random) -> list[Span]:
    return [(start, start + draw.randrange(1, 9)) for start in (draw.randrange(60) for _ in range(draw.randrange(12)))]


def test_the_first_stays_and_of_one_beginning_the_longest() -> None:
    draw = random.Random(0)
    for _ in range(300):
        spans = drawn(draw)
        expected: list[Span] = []
        for span in sorted(spans, key=lambda s: (s[0], -s[1])):
            if not any(over(span, before) for before in expected):
                expected.append(span)
        assert disjoint(spans) == expected


def test_only_what_lies_over_nothing_is_added() -> None:
    draw = random.Random(1)
    for _ in range(300):
        before, found = disjoint(drawn(draw)), disjoint(drawn(draw))
        assert added(before, found) == [span for span in found if not any(over(span, other) for other in before)]


@pytest.mark.parametrize("text", ["", "ABC ÄÖ", "İSTANBUL", "ΣΑΣ ς", "中文ABC", "\ud800A", "ẞ", "".join(map(chr, range(0x3000)))])
def test_small_letters_keep_their_places(text: str) -> None:
    small = lowered(text)
    assert len(small) == len(text)
    assert all(a in (b, b.lower()) or b == "Σ" for a, b in zip(small, text, strict=True))
    assert not any(len(c.lower()) == 1 and c.lower() != c for c in small)
    assert lowered("İSTANBUL A") == "İstanbul a"
