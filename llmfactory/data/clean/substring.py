"""Passages that stand somewhere before, byte for byte, cut out (Lee et al. 2022, section 4.1).

A suffix array sorts all places of a block of the corpus by the text that begins there; places whose next `min_bytes` bytes are
the same stand side by side, and all of them but the first in the corpus are cut. It takes some 16 bytes of memory for a byte of the
block, and about 0.2 µs. Repeats are seen within a block, not between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import MissingExtra
from llmfactory.data.clean.dedup_spec import Substring
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.remains import remains
from llmfactory.data.clean.step import Kept, Outcome, Step

Int64 = NDArray[np.int64]
Places = NDArray[np.signedinteger]
"""Of 32 bits for blocks below 2 GiB."""
Bool = NDArray[np.bool_]
AT_ONCE = 1 << 20
"""Entries of the suffix array that are looked at together."""
VERSION = 1


class SubstringStep(Step):
    def __init__(self, spec: Substring) -> None:
        self.spec = spec
        self.block_bytes = spec.block_mib << 20
        self.library = _library()

    def fingerprint(self) -> str:
        return f"{VERSION} {self.spec!r}"

    def apply(self, page: Page) -> Outcome:
        return self.apply_many([page])[0]

    def apply_many(self, pages: Sequence[Page]) -> list[Outcome]:
        texts = [page.text.encode("utf-8", "surrogatepass") for page in pages]
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        spans = self.repeats(b"".join(texts), ends)
        outcomes: list[Outcome] = [Kept(page.text) for page in pages]
        borders = np.searchsorted(spans[:, 0], np.concatenate([[0], ends]))
        for index in np.flatnonzero(np.diff(borders)).tolist():
            its = spans[borders[index] : borders[index + 1]] - (ends[index] - len(texts[index]))
            left = _without(texts[index], its.tolist())
            outcomes[index] = remains(pages[index].text, left, "repeated passages", len(its), self.spec.min_left)
        return outcomes

    def repeats(self, data: bytes, ends: Int64) -> Int64:
        """[R, 2] begins and ends of what stands in `data` before, in order; each within a document and of whole characters."""
        least = self.spec.min_bytes
        if len(data) <= least:
            return np.empty((0, 2), np.int64)
        places = self.library.divsufsort(data)
        same = self.library.kasai(data, places)[:-1] >= least  # each with the next one
        change = np.zeros(len(data) + 1, np.int32)  # in how many spans each byte is more than the one before
        low = 0
        while low < len(places):
            high = min(low + AT_ONCE, len(places))
            while high < len(places) and same[high - 1]:  # not between two that are the same
                high += 1
            begin, end = _later(places[low:high], same[low : high - 1], ends, least)
            np.add.at(change, begin, 1)
            change[end] -= 1
            low = high
        return _whole_characters(_spans(np.cumsum(change, out=change)[:-1] > 0, ends), data)


def _later(places: Places, same: Bool, ends: Int64, least: int) -> tuple[Places, Places]:
    """Begins and ends of all passages but the first among those that are the same; each has an end of its own."""
    run = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    group = np.cumsum(np.concatenate([[True], ~same])[run], dtype=np.int32)
    places = places[run]
    within = places + least <= ends[np.searchsorted(ends, places, side="right")]
    places, group = places[within], group[within]
    if not len(places):
        return places, places
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    first = np.repeat(np.minimum.reduceat(places, starts), np.diff(starts, append=len(group)))
    later = places != first
    # Where a text repeats itself at once, the first passage reaches into the next one: it is kept whole.
    return np.maximum(places, first + least)[later], places[later] + least


def _spans(covered: Bool, ends: Int64) -> Int64:
    """Runs of covered bytes, parted at the ends of documents."""
    border = np.zeros(len(covered) + 1, bool)
    border[0] = True
    border[ends] = True
    begin = covered.copy()
    begin[1:] &= ~covered[:-1] | border[1:-1]
    end = covered.copy()
    end[:-1] &= ~covered[1:] | border[1:-1]
    return np.stack([np.flatnonzero(begin), np.flatnonzero(end) + 1], axis=1)


def _whole_characters(spans: Int64, data: bytes) -> Int64:
    """Spans without the parts of characters at their ends."""
    inside = np.frombuffer(data + b" ", np.uint8) & 0xC0 == 0x80  # not the first byte of a character
    begin, end = spans[:, 0], spans[:, 1]
    for _ in range(3):
        begin = begin + inside[begin]
        end = end - inside[end]
    return np.stack([begin, end], axis=1)[begin < end]


def _without(text: bytes, spans: list[list[int]]) -> str:
    """The text without the spans; where white space goes with one, some stays between what was apart."""
    parts, at = [], 0
    for begin, end in spans:
        parts.append(text[at:begin])
        gone, rest = text[begin:end], text[end : end + 1]
        if parts[-1] and rest and not (parts[-1][-1:].isspace() or rest.isspace()):
            parts.append(b"\n" if b"\n" in gone else b" " if b" " in gone else b"")
        at = end
    parts.append(text[at:])
    return b"".join(parts).decode("utf-8", "surrogatepass").strip("\r\n")


def _library() -> Any:
    try:
        import pydivsufsort
    except ImportError as error:
        raise MissingExtra("pydivsufsort", "data", "data/clean=substring") from error
    return pydivsufsort
