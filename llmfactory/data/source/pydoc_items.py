"""Questions about the running Python's standard library, and the answers that its own docstrings give.

An item is a function, method or class with the first paragraph of its docstring. What is held out are whole top-level modules,
those that `pydocs` holds out at the same share: a model that was pretrained there has seen neither the names nor the texts. A
docstring that repeats another group's words (any 13 in a row, or all of a shorter one) is never evaluated.

Installed packages give more items, to the training part alone. They are groups of their own: what repeats one of their answers is
not evaluated, either.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from llmfactory.data.overlap import HeldOut
from llmfactory.data.record.formats import dumped
from llmfactory.data.source import docstrings
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source, Unit
from llmfactory.data.source.pycode import InstalledPackage, SourceFiles, StandardLibrary, group
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
    called: str
    """What a question calls it: its name, and in a package that from the last part of its module on: functional.relu(input)."""
    module: str
    """That it stands in: email.message."""
    answer: str
    """The first paragraph of its docstring, on one line."""
    unseen: bool
    """No other group of modules has its words."""
    package: str | None = None
    """The installed package that it is of; None: the standard library."""

    @property
    def question(self) -> str:
        """One of a few phrasings, which its name decides."""
        return QUESTIONS[number(self.name, len(QUESTIONS))].format(self.called)

    @property
    def group(self) -> str:
        return group(self.module) if self.package is None else f"package {self.package}"


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
        self.packages = tuple(sorted(set(spec.packages)))

    def fingerprint(self) -> str:
        return f"{type(self).__name__} {VERSION} {self.spec} {self._contents()}"

    def units(self) -> list[Unit]:
        sizes = [InstalledPackage(name).size() for name in self.packages]
        return [Unit(type(self).__name__, self.docs.library.size() + sum(sizes))]

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
        for items in by_module.values():
            for item in items:
                if item.name not in asked:
                    continue
                account.good += 1
                rows = self.rows(item, [other for other in items if other.answer != item.answer])
                if not rows:
                    account.left_out("too few other docstrings in its module", item.name)
                for place, row in enumerate(rows):
                    name = f"{item.name}, row {place + 1}" if place else item.name
                    yield Document(name, dumped(row), item.group, evaluated=item.unseen and place == 0)

    @abstractmethod
    def rows(self, item: Item, others: Sequence[Item]) -> list[dict[str, Any]]:
        """The rows of an item, of which the first may be evaluated; `others`: those of its module with other answers."""

    @cached_property
    def _library(self) -> tuple[Document, ...]:
        """What `pydocs` trains on and holds out."""
        return library(self.docs.fingerprint())

    def _items(self, account: Account) -> tuple[Item, ...]:
        items, left_out = survey(self.docs.fingerprint(), self.packages, self._contents())
        for one in left_out:
            account.left_out(*one)
        return items

    def _contents(self) -> str:
        """Hash of everything that is read."""
        return " ".join([self.docs.fingerprint(), *(InstalledPackage(name).fingerprint() for name in self.packages)])


@lru_cache(maxsize=2)
def library(fingerprint: str) -> tuple[Document, ...]:
    """What `pydocs` has, whose fingerprint it is: read once in a process, whichever sources are made of it."""
    docs = PythonDocs()
    return tuple(docs.documents(docs.units()[0], Account(0.0)))


@lru_cache(maxsize=2)
def survey(docs: str, packages: tuple[str, ...], contents: str) -> tuple[tuple[Item, ...], tuple[LeftOut, ...]]:
    """The items of the library and the packages, and the docstrings that are none.

    Args:
        docs: fingerprint of `pydocs`.
        contents: of everything, packages too: what was found before is found again as long as nothing has changed.
    """
    left_out: list[LeftOut] = []
    found = _documented(StandardLibrary(), None, left_out)
    extra = [item for name in packages for item in _documented(InstalledPackage(name), name, left_out)]
    texts = [(document.group, document.text) for document in library(docs)]
    unseen = _unseen([item.answer for item in found], [*texts, *((item.group, item.answer) for item in extra)])
    return (*(replace(item, unseen=alone) for item, alone in zip(found, unseen, strict=True)), *extra), tuple(left_out)


def _documented(files: SourceFiles, package: str | None, left_out: list[LeftOut]) -> list[Item]:
    """The items of a folder of modules, none of them `unseen` yet; what is none goes to `left_out`."""
    found: dict[str, Item] = {}
    for path in files.files:
        module = files.module(path)
        try:
            members = docstrings.members(files.read(path), module)
        except SyntaxError as error:
            if package is not None:  # pydocs counts those of the library
                left_out.append(("no docstrings: source does not parse", f"{module}: {error.msg}, line {error.lineno}", 0))
            continue
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
                called = name if package is None else name.removeprefix(module.rpartition(".")[0]).removeprefix(".")
                found[name] = Item(name, called, module, answer, unseen=False, package=package)
    return list(found.values())


def _unseen(answers: Sequence[str], grouped: Iterable[tuple[str, str]]) -> list[bool]:
    """Of each answer, whether its words stand in the texts of one group only, which is its own. `grouped`: (group, text)."""
    texts: dict[str, list[str]] = defaultdict(list)
    for its_group, text in grouped:
        texts[its_group].append(text)
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
