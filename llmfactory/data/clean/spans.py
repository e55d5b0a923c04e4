"""Places in a text that a finder found, and how those of several finders go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Span = tuple[int, int]
"""First character, and the one behind the last."""
Finder = Callable[[str], list[Span]]
"""Spans in order, none over another; its time grows as the length of the text, whatever the text is."""


def disjoint(spans: Sequence[Span]) -> list[Span]:
    """In order, without those that begin within an earlier one; of those with one beginning the longest stays."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept


def added(before: Sequence[Span], found: Sequence[Span]) -> list[Span]:
    """Those of `found` that lie over none of `before`; both are in order and disjoint."""
    free: list[Span] = []
    place = 0
    for span in found:
        while place < len(before) and before[place][1] <= span[0]:
            place += 1
        if place == len(before) or before[place][0] >= span[1]:
            free.append(span)
    return free


def lowered(text: str) -> str:
    """In lower case, every character in its place: İ, whose small form is two characters, stays."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c if len(c.lower()) > 1 else c.lower() for c in text)
