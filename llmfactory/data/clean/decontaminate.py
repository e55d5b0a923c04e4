"""Keeps texts of evaluation sets out of a corpus (Brown et al. 2020, appendix C): what shares a sequence of n words with one.

Of an item with fewer words its whole text is looked for. The found places are cut out with what stands around them, or the document
is dropped. Only the sets are kept in memory, as sorted hashes of their sequences.

A sequence that very many documents have is a phrase or a notice, not a leak. How many have it only the whole corpus tells, so
with `frequent` the step becomes a comparison, with a key for each found place.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import UserError
from llmfactory.data.clean.characters import UNSPACED
from llmfactory.data.clean.comparison import Comparison, Copies, Evidence, Int64, Keys
from llmfactory.data.clean.evaluations import Evaluations
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.privacy_spec import Contaminated, Decontaminate, Unit
from llmfactory.data.clean.spans import Span, lowered
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step
from llmfactory.data.ngrams import Numbers, hashes, places

VERSION = 1
KEY = "data.clean.decontaminate"


# ---- units: what sequences consist of


class Units(ABC):
    @abstractmethod
    def learned(self, text: str) -> Numbers:
        """The numbers of an item's units."""

    @abstractmethod
    def numbers(self, text: str) -> Numbers:
        """Those of any text; 0: a unit that no item has."""

    @abstractmethod
    def spans(self, text: str) -> tuple[Int64, Int64]:
        """Of each unit its first character, and the one behind its last."""


class Words(Units):
    """Letters and digits between other characters; a Chinese character or kana is a word."""

    WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}

    def learned(self, text: str) -> Numbers:
        known = self.vocabulary
        return np.array([known.setdefault(word, len(known) + 1) for word in self.WORD.findall(lowered(text))], np.uint64)

    def numbers(self, text: str) -> Numbers:
        get = self.vocabulary.get
        return np.array([get(word, 0) for word in self.WORD.findall(lowered(text))], np.uint64)

    def spans(self, text: str) -> tuple[Int64, Int64]:
        found = np.array([match.span() for match in self.WORD.finditer(lowered(text))], np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]


class Characters(Units):
    """Letters and digits one by one; what stands between them does not count."""

    def learned(self, text: str) -> Numbers:
        return self.numbers(text)

    def numbers(self, text: str) -> Numbers:
        codes = _codes(lowered(text))
        return codes[_counting()[codes]].astype(np.uint64)

    def spans(self, text: str) -> tuple[Int64, Int64]:
        start = np.flatnonzero(_counting()[_codes(lowered(text))])
        return start, start + 1


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@cache
def _counting() -> NDArray[np.bool_]:
    """Of every character whether it is a letter or a digit."""
    return np.fromiter(map(str.isalnum, map(chr, range(0x110000))), bool, 0x110000)


# ---- what stands in both


class Hits:
    """H sequences of a page that an item has, too, in the order of their first unit."""

    def __init__(self, first: Int64, length: Int64, file: Int64, key: Numbers) -> None:
        order = np.lexsort((length, first))
        self.first, self.length, self.file, self.key = first[order], length[order], file[order], key[order]

    def __len__(self) -> int:
        return len(self.first)

    def only(self, items: Int64) -> Hits:
        return Hits(self.first[items], self.length[items], self.file[items], self.key[items])


class Index:
    """Sequences of the evaluation sets.

    Nearly no place of a corpus begins one. Whether it may, its first `head` units tell, as many as the shortest sequence has.
    """

    def __init__(self, spec: Decontaminate) -> None:
        sets = Evaluations(spec.files, spec.fields, KEY)
        self.hash, self.names = sets.hash, sets.names
        self.units: Units = Words() if spec.unit is Unit.words else Characters()
        items: dict[int, list[tuple[Numbers, int]]] = {}
        for file, text in sets.texts:
            numbers = self.units.learned(text)
            if len(numbers) >= spec.shortest:
                items.setdefault(min(spec.n, len(numbers)), []).append((numbers, file))
        if not items:
            raise UserError(
                f"{KEY}.files: no text in {', '.join(self.names[:5])} has {KEY}.shortest={spec.shortest} {spec.unit.name}"
            )
        self.head = min(items)
        self.known: dict[int, tuple[Numbers, Int64]] = {}
        """Of each length the sequences, sorted, and the first file that has each."""
        heads = []
        for length, its in sorted(items.items()):
            found, head, file_of = _sequences(its, length, self.head)
            known, place = np.unique(found, return_index=True)
            self.known[length] = known, file_of[place]
            heads.append(np.unique(head))
        self.heads = Lookup(np.unique(np.concatenate(heads)))

    def hits(self, text: str) -> Hits | None:
        numbers = self.units.numbers(text)
        if not _has_run(numbers, self.head):
            return None
        begins = np.flatnonzero(self.heads.has(hashes(numbers, [self.head])[self.head]))
        if not len(begins):
            return None
        parts = [self._of_length(size, found, begins) for size, found in hashes(numbers, self.known).items()]
        hits = Hits(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        return hits if len(hits) else None

    def _of_length(self, size: int, found: Numbers, begins: Int64) -> tuple[Int64, Int64, Int64, Numbers]:
        known, file_of = self.known[size]
        first = begins[begins < len(found)]
        place = places(found[first], known)
        first, place = first[place >= 0], place[place >= 0]
        return first, np.full(len(first), size), file_of[place], found[first]


def _sequences(items: Sequence[tuple[Numbers, int]], length: int, head: int) -> tuple[Numbers, Numbers, Int64]:
    """Of each sequence within an item its hash, that of its first `head` units, and the item's file."""
    numbers, sizes = np.concatenate([its for its, _ in items]), [len(its) for its, _ in items]
    left = np.repeat(np.cumsum(sizes), sizes) - np.arange(len(numbers))  # units of the item from here on
    begins = np.flatnonzero(left >= length)
    found = hashes(numbers, [length, head])
    file = np.repeat(np.array([file for _, file in items], np.int64), sizes)
    return found[length][begins], found[head][begins], file[begins]


class Lookup:
    """Which hashes are among known ones: nearly all others are told by a table, where a search takes long."""

    def __init__(self, known: Numbers) -> None:
        self.known = known
        size = 1 << max(10, (16 * len(known)).bit_length())
        self.mask, self.table = np.uint64(size - 1), np.zeros(size, bool)
        self.table[known & self.mask] = True

    def has(self, found: Numbers) -> NDArray[np.bool_]:
        there: NDArray[np.bool_] = self.table[found & self.mask]
        maybe = np.flatnonzero(there)
        there[maybe] = places(found[maybe], self.known) >= 0
        return there


def _has_run(numbers: Numbers, length: int) -> bool:
    """Whether so many units that follow each other are an item's."""
    strange = np.flatnonzero(np.concatenate([[True], numbers == 0, [True]]))
    return bool((np.diff(strange) > length).any())


# ---- what is done about it


def without(text: str, hits: Hits, index: Index, spec: Decontaminate) -> Outcome:
    start, end = index.units.spans(text)
    found = _runs(zip(start[hits.first].tolist(), end[hits.first + hits.length - 1].tolist(), hits.file.tolist(), strict=True))
    counts = Counter(f"in {index.names[file]}" for _, _, file in found)
    shown = ", ".join(f"{number} × {name}" for name, number in sorted(counts.items()))
    if spec.action is Contaminated.drop:
        return Drop(min(counts, key=lambda name: (-counts[name], name)), shown)
    pieces = _between([(first, last) for first, last, _ in found], len(text), spec.around)
    if len(pieces) > spec.max_pieces:
        return Drop("in too many pieces", f"{len(pieces)} > {spec.max_pieces}: {shown}")
    left = [piece for first, last in pieces if len(piece := text[first:last].strip()) >= max(1, spec.around)]
    return Kept("\n\n".join(left), dict(counts)) if left else Drop("nothing left around what is cut", shown)


def _runs(found_at: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Places of sequences, in order, joined where they overlap: one for each passage. The file is that of its first sequence."""
    found: list[tuple[int, int, int]] = []
    for start, end, file in found_at:
        if found and start <= found[-1][1]:
            first, last, before = found[-1]
            found[-1] = first, max(last, end), before
        else:
            found.append((start, end, file))
    return found


def _between(cut: Sequence[Span], size: int, around: int) -> list[Span]:
    """What is left of a text of that size without the places and `around` characters on each side."""
    pieces, done = [], 0
    for start, end in cut:
        if start - around > done:
            pieces.append((done, start - around))
        done = max(done, end + around)
    return [*pieces, (done, size)] if done < size else pieces


def fingerprint(spec: Decontaminate, index: Index) -> str:
    options = [spec.fields, spec.unit.name, spec.n, spec.shortest, spec.frequent, spec.action.name, spec.around, spec.max_pieces]
    return f"decontaminate {VERSION} {unicodedata.unidata_version} {index.hash} {index.names} {options}"


class WithoutEvaluations(Step):
    """Every sequence counts."""

    def __init__(self, spec: Decontaminate) -> None:
        self.spec, self.index = spec, Index(spec)

    def fingerprint(self) -> str:
        return fingerprint(self.spec, self.index)

    def apply(self, page: Page) -> Outcome:
        hits = self.index.hits(page.text)
        return Kept(page.text) if hits is None else without(page.text, hits, self.index, self.spec)


class WithoutRareEvaluations(Comparison):
    """Sequences count that at most `frequent` documents have."""

    def __init__(self, spec: Decontaminate) -> None:
        self.spec, self.index = spec, Index(spec)

    def fingerprint(self) -> str:
        return fingerprint(self.spec, self.index)

    def keys(self, pages: Sequence[Page]) -> Keys:
        """An item is the number of a hit among those of its page."""
        found = [(number, hits) for number, page in enumerate(pages) if (hits := self.index.hits(page.text)) is not None]
        if not found:
            return Keys(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64))
        return Keys(
            np.concatenate([np.full(len(hits), number) for number, hits in found]),
            np.concatenate([np.arange(len(hits)) for _, hits in found]),
            np.concatenate([hits.key for _, hits in found]),
        )

    def copies(self, key: NDArray[np.uint64], document: Int64, item: Int64, evidence: Evidence) -> Copies:
        if not len(key):
            return Copies.none()
        new_key = np.concatenate([[True], key[1:] != key[:-1]])
        new_document = new_key | np.concatenate([[True], document[1:] != document[:-1]])
        documents = np.add.reduceat(new_document, np.flatnonzero(new_key), dtype=np.int64)
        assert self.spec.frequent is not None
        rare = (documents <= self.spec.frequent)[np.cumsum(new_key) - 1]
        return Copies(document[rare], item[rare], document[rare])

    def apply(self, page: Page, items: Int64) -> Outcome:
        hits = self.index.hits(page.text)
        assert hits is not None
        return without(page.text, hits.only(items), self.index, self.spec)
