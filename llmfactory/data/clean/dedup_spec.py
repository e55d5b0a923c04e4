"""Catalogue of the steps that take out what comes twice.    llmfactory 'data/clean=[exact,minhash,lines]'"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import at_least, between
from llmfactory.data.clean.base_spec import CleanSpec

if TYPE_CHECKING:
    from llmfactory.data.clean.comparison import Comparison
    from llmfactory.data.clean.models import Models
    from llmfactory.data.clean.step import Step


class Unit(Enum):
    """What an n-gram is made of."""

    words = "words"
    """Runs of letters and digits; every character by itself in scripts that put no spaces between words (Chinese, Japanese, Thai)."""
    characters = "characters"
    """Letters and digits."""


class Verify(Enum):
    """What candidates are compared by."""

    none = "none"
    """Nothing: all of a bucket are alike."""
    signature = "signature"
    """The share of equal hashes in their signatures, an estimate: standard error sqrt(J (1 - J) / hashes)."""
    sketch = "sketch"
    """Their 1,024 smallest n-gram hashes: exact for two that have no more together, standard error below 0.016 beyond. 4 KiB each."""


@dataclass(kw_only=True, slots=True)
class ByTextSpec(CleanSpec):
    """Base of steps that look for equal texts."""

    ignore_case: bool = False
    """Capital and small letters are alike."""
    ignore_space: bool = True
    """White space is alike, however much there is, and counts for nothing at the ends."""
    ignore_marks: bool = False
    """Only letters and digits count, in their compatibility forms (NFKC): no punctuation, symbols or spaces."""
    ignore_digits: bool = False
    """All digits are alike, so that lines that differ in a date or a count are equal."""


@dataclass(kw_only=True, slots=True)
class Exact(ByTextSpec):
    """Documents with the same text: the first stays."""

    whole: ClassVar[bool] = True

    def build(self, models: Models) -> Comparison:
        from llmfactory.data.clean.exact import ExactComparison

        return ExactComparison(self)


@dataclass(kw_only=True, slots=True)
class PiecesSpec(ByTextSpec):
    """Base of steps that look for equal parts of documents."""

    min_characters: int
    """Shorter parts are left alone."""
    documents: int = 2
    """A part must come in that many documents; the first of them keeps it. 1: one that comes twice in a document loses the second."""
    min_left: float = 0.3
    """Share of a document's characters that must be left; with less the whole document goes."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "min_characters", "documents")
        yield from between(self, 0.0, 1.0, "min_left")


@dataclass(kw_only=True, slots=True)
class Lines(PiecesSpec):
    """Lines that other documents have, too (CCNet, Wenzek et al. 2020; C4, Raffel et al. 2020; RefinedWeb, Penedo et al. 2023)."""

    def build(self, models: Models) -> Comparison:
        from llmfactory.data.clean.lines import LineComparison

        return LineComparison(self)


@dataclass(kw_only=True, slots=True)
class Paragraphs(PiecesSpec):
    """Paragraphs, parted by blank lines, that other documents have, too."""

    def build(self, models: Models) -> Comparison:
        from llmfactory.data.clean.paragraphs import ParagraphComparison

        return ParagraphComparison(self)


@dataclass(kw_only=True, slots=True)
class Minhash(CleanSpec):
    """Documents with nearly the same set of n-grams, found by MinHash signatures (Broder 1997) that are cut into bands; the first of
    a cluster stays.

    Two of Jaccard similarity s share a bucket with a chance of 1 - (1 - s^rows)^bands.
    """

    whole: ClassVar[bool] = True
    ngram: int = 5
    """Units in an n-gram; a shorter document is one n-gram."""
    unit: Unit = Unit.words
    """What an n-gram is made of."""
    bands: int = 20
    """Pieces that a signature is cut into: documents that agree in one are compared."""
    rows: int = 6
    """Hashes in a band."""
    verify: Verify = Verify.signature
    """How the documents of a bucket are compared."""
    threshold: float = 0.8
    """Jaccard similarity from which on two documents are alike; without `verify` bands and rows decide alone."""
    seed: int = 1
    """Of the hash functions."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 1, 1000, "ngram")
        yield from at_least(self, 1, "bands", "rows")
        yield from between(self, 0.0, 1.0, "threshold")
        yield from at_least(self, 0, "seed")

    def build(self, models: Models) -> Comparison:
        from llmfactory.data.clean.minhash import MinhashComparison

        return MinhashComparison(self)


@dataclass(kw_only=True, slots=True)
class Simhash(CleanSpec):
    """Documents whose 64-bit fingerprints differ in few bits (Charikar 2002; Manku et al. 2007); the first of a cluster stays."""

    whole: ClassVar[bool] = True
    ngram: int = 2
    """Units in an n-gram; a shorter document is one n-gram."""
    unit: Unit = Unit.words
    """What an n-gram is made of."""
    distance: int = 3
    """Bits in which the fingerprints of alike documents may differ."""
    blocks: int = 5
    """Parts of the fingerprint, more than `distance`: documents are compared that agree in all but `distance` of them. With more
    there are more keys, and fewer comparisons for nothing: a key has 64 (blocks - distance) / blocks bits."""
    seed: int = 1
    """Of the hash function."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 1, 1000, "ngram")
        yield from between(self, 0, 16, "distance")
        yield from at_least(self, 0, "seed")
        if not self.distance < self.blocks <= self.distance + 3:
            reason = f"must lie between distance + 1 and distance + 3 = {self.distance + 3}"
            yield Problem("blocks", self.blocks, reason, f"blocks={self.distance + 2}")

    def build(self, models: Models) -> Comparison:
        from llmfactory.data.clean.simhash import SimhashComparison

        return SimhashComparison(self)


@dataclass(kw_only=True, slots=True)
class Substring(CleanSpec):
    """Passages that stand somewhere before, word for word, are cut out (Lee et al. 2022): a suffix array over a block of the corpus."""

    min_bytes: int = 200
    """Shorter repeats stay. UTF-8; 200 are about 35 English words, 50 tokens, or 66 Chinese characters."""
    min_left: float = 0.3
    """Share of a document's characters that must be left; with less the whole document goes."""
    block_mib: int = 32
    """Text that is searched at once, in MiB: what repeats in another block is not seen. A process takes about 16 times as much
    memory."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 16, "min_bytes")
        yield from between(self, 0.0, 1.0, "min_left")
        yield from between(self, 1, 2047, "block_mib")

    def build(self, models: Models) -> Step:
        from llmfactory.data.clean.substring import SubstringStep

        return SubstringStep(self)
