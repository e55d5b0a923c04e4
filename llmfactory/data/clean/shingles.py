"""n-grams of documents as 64-bit hashes, made with NumPy for many documents at once.

A text becomes an array of code points. A polynomial over it, P[i] = sum of c[j] B^j for j < i modulo 2^64, gives the hash of any
run of characters as (P[end] - P[begin]) B^-begin, since an odd B has an inverse: words are hashed without a loop. The same over
the hashes of words gives those of n-grams, whatever n is. Each is mixed at the end (Steele et al. 2014), so that all its bits
can be taken for random. Two different n-grams get one hash with a chance of about 2^-64.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.characters import UNSPACED
from llmfactory.data.clean.dedup_spec import Unit

Hashes = NDArray[np.uint64]
Int64 = NDArray[np.int64]
Codes = NDArray[np.unsignedinteger]
Kinds = NDArray[np.uint8]

CHARACTERS = 1 << 16
"""What is hashed at once: its tables stay in the processor's cache, and a document of any length needs no more."""
UNICODE = unicodedata.unidata_version
"""What the interpreter knows of letters, on which n-grams depend."""
MOST_UNITS = 1000
"""In an n-gram."""
BASE = 0x9E3779B97F4A7C15
_END = 0x33480
"""Code points from here on are no letters: tags and private use."""
_NONE, _WORD, _ALONE = 0, 1, 2
_ALONE_TOO = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
"""Thai, Lao, Tibetan, Burmese, Khmer: inside of a character class."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """n-gram hashes of some documents; of a long one, only some."""

    hashes: Hashes
    """[S], document after document"""
    documents: Int64
    """[D], which they are; all have an n-gram here"""
    starts: Int64
    """[D], where in `hashes` each begins"""


def shingles(texts: Sequence[str], n: int, unit: Unit) -> Iterator[Chunk]:
    """All n-grams of all texts, repeated ones too; a text of fewer than n units has one, an empty one none."""
    waiting: dict[bool, list[int]] = {True: [], False: []}  # by whether they are ASCII, which is read faster
    sizes = dict.fromkeys(waiting, 0)
    for index, text in enumerate(texts):
        if len(text) > CHARACTERS:
            yield from _of_long(text, index, n, unit)
            continue
        kind = text.isascii()
        if sizes[kind] + len(text) > CHARACTERS:
            yield from _of_short(texts, waiting[kind], n, unit)
            waiting[kind], sizes[kind] = [], 0
        waiting[kind].append(index)
        sizes[kind] += len(text) + 1
    for indices in waiting.values():
        yield from _of_short(texts, indices, n, unit)


def _of_short(texts: Sequence[str], indices: list[int], n: int, unit: Unit) -> Iterator[Chunk]:
    """Of those of the texts, which are hashed as one."""
    ends = np.cumsum([len(texts[index]) + 1 for index in indices], dtype=np.int64)
    units, begins = _units(*_read("\n".join([texts[index] for index in indices])), unit)
    edges = np.concatenate([[0], np.searchsorted(begins, ends)])  # [P + 1], the units of each
    have = np.diff(edges)
    counts = np.where(have > n, have - n + 1, np.minimum(have, 1))
    some = np.flatnonzero(counts)
    if not len(some):
        return
    starts = np.cumsum(counts) - counts
    begin = np.repeat(edges[:-1] - starts, counts) + np.arange(counts.sum())
    end = np.minimum(begin + n, np.repeat(edges[1:], counts))
    yield Chunk(_runs(units, begin, end), np.asarray(indices, np.int64)[some], starts[some])


def _of_long(text: str, index: int, n: int, unit: Unit) -> Iterator[Chunk]:
    """Piece by piece; the last n - 1 units of a piece are kept for the n-grams that go on in the next one."""
    place, found = np.array([index]), False
    kept: Hashes = np.empty(0, np.uint64)
    at = 0
    while at < len(text):
        codes, kinds = _read(text[at : at + CHARACTERS])
        if at + len(codes) < len(text):  # not within a word, unless it fills all of it
            between = np.flatnonzero(kinds != _WORD)
            size = between[-1] + 1 if len(between) else len(codes)
            codes, kinds = codes[:size], kinds[:size]
        at += len(codes)
        kept = np.concatenate([kept, _units(codes, kinds, unit)[0]])
        if len(kept) >= n:
            begin = np.arange(len(kept) - n + 1)
            yield Chunk(_runs(kept, begin, begin + n), place, np.zeros(1, np.int64))
            kept, found = kept[len(begin) :], True
    if len(kept) and not found:
        yield Chunk(_runs(kept, np.zeros(1, np.int64), np.array([len(kept)])), place, np.zeros(1, np.int64))


def _read(text: str) -> tuple[Codes, Kinds]:
    """[C] code points, capital letters as small ones, and [C] whether each is part of a word, a word of its own, or none."""
    small, kinds = _tables()
    if text.isascii():
        data = text.encode("ascii")
        return np.frombuffer(data.lower(), np.uint8), np.frombuffer(data.translate(_ascii_kinds()), np.uint8)
    codes = np.minimum(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4"), _END)
    return small[codes], kinds[codes]


@functools.cache
def _tables() -> tuple[NDArray[np.uint32], Kinds]:
    """[_END + 1] the small form of each code point, if it is one character, and [_END + 1] its kind: letters, digits, and the marks
    that belong to letters are in words."""
    everything = [chr(code) for code in range(_END + 1)]
    small = np.array([ord(form) if len(form := c.lower()) == 1 else ord(c) for c in everything], np.uint32)
    kinds = np.array([_WORD if unicodedata.category(c)[0] in "LNM" else _NONE for c in everything], np.uint8)
    alone = [match.start() for match in re.finditer(f"[{UNSPACED}{_ALONE_TOO}]", "".join(everything))]
    kinds[alone] = np.where(kinds[alone] == _WORD, _ALONE, _NONE)
    return small, kinds


@functools.cache
def _ascii_kinds() -> bytes:
    return _tables()[1][:256].tobytes()


def marks() -> list[tuple[int, int]]:
    """First and last of each range of code points that are part of no word."""
    none = np.concatenate([[False], _tables()[1][:_END] == _NONE, [False]])
    edges = np.flatnonzero(none[1:] != none[:-1])
    ranges = [(low, high - 1) for low, high in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]
    return [*ranges, (_END, 0x10FFFF)]


def _units(codes: Codes, kinds: Kinds, unit: Unit) -> tuple[Hashes, Int64]:
    """Hash of each unit [W], and where in the text it begins [W]."""
    if unit is Unit.characters:
        begin = np.flatnonzero(kinds)
        return mixed(codes[begin].astype(np.uint64)), begin
    inside = np.zeros(len(kinds) + 2, bool)
    inside[1:-1] = kinds == _WORD
    alone = kinds == _ALONE
    begin = np.flatnonzero((inside[1:-1] & ~inside[:-2]) | alone)
    end = np.flatnonzero((inside[1:-1] & ~inside[2:]) | alone) + 1
    return _runs(codes, begin, end), begin


def _runs(values: NDArray[np.unsignedinteger], begin: Int64, end: Int64) -> Hashes:
    """Hash of values[begin:end] for each pair."""
    powers, inverses = _powers()
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return mixed((sums[end] - sums[begin]) * inverses[begin])


@functools.cache
def _powers() -> tuple[Hashes, Hashes]:
    """B^i and B^-i modulo 2^64, for all that is hashed at once."""
    factors = np.full((2, CHARACTERS + MOST_UNITS + 1), BASE, np.uint64)
    factors[1] = pow(BASE, -1, 1 << 64)
    factors[:, 0] = 1
    powers = np.multiply.accumulate(factors, axis=1)
    return powers[0], powers[1]


def mixed(values: Hashes) -> Hashes:
    """Each number spread over all 64 bits, one to one (the finalizer of SplitMix64)."""
    values = values + np.uint64(BASE)  # a copy, which is worked on
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values
