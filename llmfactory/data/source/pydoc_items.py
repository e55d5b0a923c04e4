"""Questions about the running Python's standard library, and the answers that its own docstrings give.

An item is a function, method or class with the first paragraph of its docstring. What is held out are whole top-level modules,
those that `pydocs` holds out at the same share: a model that was pretrained there has seen neither the names nor the texts. A
docstring that repeats another group's words (any 13 in a row, or all of a shorter one) is never evaluated.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from llmfactory.data.overlap import HeldOut
from llmfactory.data.record.formats import dumped
from llmfactory.data.source import docstrings
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source, Unit
from llmfactory.data.source.pycode import StandardLibrary, group
from llmfactory.data.source.pydocs import PythonDocs
from llmfactory.data.source.spec import PydocItemsSpec

VERSION = 1
"""Of how items and records are made; part of the fingerprint."""
FEWEST_WORDS, MOST_CHARACTERS = 3, 300
"""Of an answer."""
CALLED = {"posixpath": "os.path"}
"""Modules that people know by another name."""
QUESTIONS = (
    "What does {} do?",
    "What is {} for?",
    "Explain {}.",
    "Describe {} in a sentence.",
    "Document {}.",
)
LeftOut = tuple[str, str, int]
"""Why, which one, and how much of it, as `Account.left_out` counts it."""


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    """Qualified, with the names of its arguments where it is called: os.path.join(a, *p)."""
    module: str
    """That it stands in: email.message."""
    answer: str
    """The first paragraph of its docstring, on one line."""
    unseen: bool
    """No other group of modules has its words."""

    @property
    def question(self) -> str:
        """One of a few phrasings, which its name decides."""
        return QUESTIONS[number(self.name, len(QUESTIONS))].format(self.name)


def number(text: str, below: int) -> int:
    """A number that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % below


def some(item: Item, others: Sequence[Item], count: int) -> list[Item]:
    """So many of the others, or all there are, as the item's name decides."""
    return sorted(others, key=lambda other: number(f"{item.name}\n{other.name}", 1 << 64))[:count]


class ItemSource(Source):
    """Base of the sources of records that are made of items."""

    can_cut = False
    max_overlap = 1.0  # what repeats is not evaluated, see above; and questions are alike

    def __init__(self, spec: PydocItemsSpec) -> None:
        self.spec, self.docs = spec, PythonDocs()

    def fingerprint(self) -> str:
        return f"{type(self).__name__} {VERSION} {self.spec} {self.docs.fingerprint()}"

    def units(self) -> list[Unit]:
        return [Unit(type(self).__name__, self.docs.library.size())]

    def weights(self) -> Mapping[str, int]:
        found: dict[str, int] = defaultdict(int)
        for document in self._library:
            found[document.group] += len(document.text.encode()) if document.evaluated else 0
        return found

    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        by_module: dict[str, list[Item]] = defaultdict(list)
        found = self._items(account)
        for item in found:
            by_module[item.module].append(item)
        asked = {item.name for item in sorted(found, key=lambda item: number(item.name, 1 << 64))[: self.spec.items]}
        for module, items in by_module.items():
            for item in items:
                if item.name not in asked:
                    continue
                account.good += 1
                rows = self.rows(item, [other for other in items if other.answer != item.answer])
                if not rows:
                    account.left_out("too few other docstrings in its module", item.name)
                for place, row in enumerate(rows):
                    name = f"{item.name}, row {place + 1}" if place else item.name
                    yield Document(name, dumped(row), group(module), evaluated=item.unseen and place == 0)

    @abstractmethod
    def rows(self, item: Item, others: Sequence[Item]) -> list[dict[str, Any]]:
        """The rows of an item, of which the first may be evaluated; `others`: those of its module with other answers."""

    @cached_property
    def _library(self) -> tuple[Document, ...]:
        """What `pydocs` trains on and holds out."""
        return library(self.docs.fingerprint())

    def _items(self, account: Account) -> tuple[Item, ...]:
        items, left_out = survey(self.docs.fingerprint())
        for one in left_out:
            account.left_out(*one)
        return items


@lru_cache(maxsize=2)
def library(fingerprint: str) -> tuple[Document, ...]:
    """What `pydocs` has, whose fingerprint it is: read once in a process, whichever sources are made of it."""
    docs = PythonDocs()
    return tuple(docs.documents(docs.units()[0], Account(0.0)))


@lru_cache(maxsize=2)
def survey(fingerprint: str) -> tuple[tuple[Item, ...], tuple[LeftOut, ...]]:
    """The items of the library with this fingerprint, and the docstrings that are none."""
    left_out: list[LeftOut] = []
    found: dict[str, tuple[str, str]] = {}
    files = StandardLibrary()
    for path in files.files:
        module = files.module(path)
        try:
            members = docstrings.members(files.read(path), module)
        except SyntaxError:
            continue  # pydocs counts these
        for member in members:
            name = _called(member, module)
            answer = " ".join(member.doc.split("\n\n")[0].split())
            if len(answer.split()) < FEWEST_WORDS:
                left_out.append((f"a docstring of less than {FEWEST_WORDS} words", name, 0))
            elif len(answer) > MOST_CHARACTERS:
                left_out.append((f"a paragraph of more than {MOST_CHARACTERS} characters", name, len(answer)))
            elif name in found:
                left_out.append(("a second one of its name", name, 0))
            else:
                found[name] = module, answer
    unseen = _unseen([answer for _, answer in found.values()], library(fingerprint))
    return tuple(Item(name, *about, alone) for (name, about), alone in zip(found.items(), unseen, strict=True)), tuple(left_out)


def _unseen(answers: Sequence[str], documents: Iterable[Document]) -> list[bool]:
    """Of each answer, whether its words stand in the texts of one group only, which is its own."""
    texts: dict[str, list[str]] = defaultdict(list)
    for document in documents:
        texts[document.group].append(document.text)
    held_out = HeldOut(answers)
    groups: dict[int, Any] = {}
    for some_texts in texts.values():
        for length, seen in held_out.look(some_texts).items():
            groups[length] = groups.get(length, 0) + seen.astype(np.int64)
    shares = held_out.shares({length: counts > 1 for length, counts in groups.items()})
    return [share == 0 for share in shares.tolist()]


def _called(member: docstrings.Member, module: str) -> str:
    name = CALLED[module] + member.name.removeprefix(module) if module in CALLED else member.name
    return name if member.arguments is None else f"{name}({', '.join(member.arguments)})"
