"""One map over the corpus: documents are read (from a source, or from the shards of the map before), go through steps, and are
written to new shards.

The steps of a job are cut into segments where one must know the whole corpus: a comparison ends a segment by giving keys of its
documents, and begins the next, when copies are known, by taking them out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llmfactory.data.clean.comparison import Comparison
from llmfactory.data.clean.models import Models
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.spec import CleanSpec
from llmfactory.data.clean.step import Drop, Kept, Outcome, Step
from llmfactory.data.form.form import Form
from llmfactory.data.form.spec import FormSpec
from llmfactory.data.grouping import KeyWriter, Verdicts
from llmfactory.data.shard import Entry, Piece, Shards, ShardWriter, group_number
from llmfactory.data.source.account import Account, BadRecord
from llmfactory.data.source.document import Source, Unit
from llmfactory.data.source.spec import SourceSpec
from llmfactory.data.spec import key_of
from llmfactory.data.tally import READ, Reason, Tally
from llmfactory.data.tasks import Phase

PIECE = 32 << 20
"""Bytes of text that one task works on after the first segment."""
CHUNK = 1 << 20
"""Bytes of text that go through a step together."""
QUARANTINE = "quarantine.jsonl"
FORM = "form"
"""The last step: whether the document is what its form says."""


@dataclass(frozen=True, slots=True)
class Part:
    """Steps of one segment, by name."""

    before: str | None
    """Name of the comparison whose copies are taken out first."""
    steps: tuple[str, ...]
    after: str | None
    """Name of the comparison that is given keys at the end."""
    block_bytes: int | None = None
    """How much text the first step must see at once."""
    last: bool = False

    @property
    def named(self) -> tuple[str, ...]:
        """What is done to the documents, in order."""
        return self.steps if self.before is None else (self.before, *self.steps)


def cut(steps: Mapping[str, Step | Comparison]) -> list[Part]:
    """The segments of a list of steps."""
    parts: list[Part] = []
    before: str | None = None
    block: int | None = None
    these: list[str] = []
    for name, step in steps.items():
        if isinstance(step, Comparison):
            parts.append(Part(before, tuple(these), name, block))
            before, these, block = name, [], None
        elif step.block_bytes is not None:  # what it sees at once must not depend on how sources come in units
            parts.append(Part(before, tuple(these), None, block))
            before, these, block = None, [name], step.block_bytes
        else:
            these.append(name)
    return [*parts, Part(before, tuple(these), None, block, last=True)]


@dataclass(frozen=True, slots=True)
class Item:
    """A document in a segment."""

    page: Page
    group: int
    evaluated: bool
    number: int
    """Among all documents of the segment before."""


@dataclass(kw_only=True)
class Segment(Phase):
    """The tasks of one segment: units of the sources, or pieces of the shards of the segment before."""

    name: str
    part: Part
    sources: dict[str, SourceSpec]
    clean: dict[str, CleanSpec]
    form: FormSpec
    models: Models
    partitions: int
    """Into how many the keys of the comparison are dealt."""
    before: Path | None
    """Shards of the segment before; None: this is the first one."""
    verdicts: Path | None
    """What the comparison found."""
    label: str = field(init=False)

    def __post_init__(self) -> None:
        named = f" ({', '.join(self.part.named)})" if self.part.named else ""
        self.label = "reading" if self.before is None else f"cleaning{named}"

    @cached_property
    def opened(self) -> dict[str, Source]:
        return {name: spec.build() for name, spec in self.sources.items()}

    @cached_property
    def units(self) -> list[tuple[str, Unit]]:
        return [(name, unit) for name, source in self.opened.items() for unit in source.units()]

    @cached_property
    def shards(self) -> Shards:
        assert self.before is not None
        return Shards.of(self.before)

    @cached_property
    def built(self) -> dict[str, Step | Comparison]:
        wanted = [*self.part.named, *([self.part.after] if self.part.after is not None else [])]
        return {name: self.clean[name].build(self.models) for name in wanted}

    @cached_property
    def form_step(self) -> Form:
        return self.form.build()

    @cached_property
    def found(self) -> Verdicts:
        assert self.verdicts is not None
        return Verdicts(self.verdicts)

    @cached_property
    def pieces(self) -> list[Piece]:
        return self.shards.pieces(self.part.block_bytes or PIECE)

    def sizes(self) -> Sequence[int]:
        if self.before is None:
            return [unit.size for _, unit in self.units]
        return [piece.bytes for piece in self.pieces]

    def do(self, number: int, folder: Path) -> None:
        tally = Tally()
        about: dict[str, Any] = {}
        if self.before is None:
            name, unit = self.units[number]
            read = self._account(name)
            chunks = self._read(name, unit, read, tally)
        else:
            piece = self.pieces[number]
            name = self.shards.shards[piece.shard].source
            read = self._account(name)
            chunks = self._read_again(piece)
        judged = self._account(name)
        keys = KeyWriter(folder, self.partitions) if self.part.after is not None else None
        with ShardWriter(folder, name) as writer:
            for items in chunks:
                for item in self._go(name, items, tally, keys, judged):
                    writer.add(item.page.name, item.page.text, item.group, item.evaluated)
            if keys is not None:
                about |= keys.close()
            bads = [*read.bads, *judged.bads]
            about["bad"] = len(bads)
            if self.before is None:
                about["records"] = read.good + len(read.bads)
            if bads:
                write_quarantine(folder / QUARANTINE, bads, name)
            writer.close(tally=tally.plain(), **about)

    def _account(self, source: str) -> Account:
        return Account(self.opened[source].bad_share, f"{key_of(source, self.sources)}.bad_share")

    def _go(self, source: str, items: list[Item], tally: Tally, keys: KeyWriter | None, account: Account) -> list[Item]:
        """What the steps of this segment leave of some documents, and their keys."""
        for step in self.part.named:
            if self._is_for(step, source):
                items = self._apply(step, items, tally)
        if self.part.last:
            items = self._apply(FORM, items, tally, account if self.form_step.records else None)
            for item in items:
                tally.length("kept", item.page.size)
        self._give_keys(source, items, keys)
        return items

    def _is_for(self, step: str, source: str) -> bool:
        """Whether a step works on the documents of a source."""
        wanted = self.clean[step].sources
        return not wanted or source in wanted

    def _read(self, name: str, unit: Unit, account: Account, tally: Tally) -> Iterator[list[Item]]:
        """The documents of a unit, some at a time; counts what was read."""
        items: list[Item] = []
        size, counted = 0, tally.step(READ)
        for document in self.opened[name].documents(unit, account):
            try:
                page = Page(document.name, document.text)
                bytes_ = page.size
            except UnicodeEncodeError as error:
                account.bad(document.name, "a text that no encoding knows", str(error))
                continue
            counted.seen += 1
            counted.kept += 1
            counted.seen_bytes += bytes_
            counted.kept_bytes += bytes_
            tally.length("read", bytes_)
            items.append(Item(page, group_number(document.group), document.evaluated, -1))
            size += bytes_
            if size >= CHUNK:
                yield items
                items, size = [], 0
        yield items
        for reason, dropped in account.drops.by_reason.items():
            counted.seen += dropped.documents
            counted.seen_bytes += dropped.bytes
            one = counted.dropped.setdefault(reason, Reason())
            one.documents += dropped.documents
            one.bytes += dropped.bytes
            one.times += dropped.documents
            for sample in dropped.samples:
                one.keep(sample, "", "")

    def _read_again(self, piece: Piece) -> Iterator[list[Item]]:
        items: list[Item] = []
        size, in_chunks = 0, self.part.block_bytes is None  # a block is a piece, and goes on as a whole
        entries: Iterator[Entry] = self.shards.shards[piece.shard].read(piece.first, piece.stop)
        for number, entry in enumerate(entries, piece.start):
            items.append(Item(Page(entry.name, entry.text), entry.group, entry.evaluated, number))
            size += len(entry.text)
            if in_chunks and size >= CHUNK:
                yield items
                items, size = [], 0
        yield items

    def _apply(self, name: str, items: list[Item], tally: Tally, account: Account | None = None) -> list[Item]:
        """What a step leaves of some documents; with an account, the others are records that cannot be read."""
        counted, left = tally.step(name), []
        for item, outcome in zip(items, self._outcomes(name, items), strict=True):
            size = item.page.size
            counted.seen += 1
            counted.seen_bytes += size
            if isinstance(outcome, Drop):
                counted.dropped.setdefault(outcome.reason, Reason()).add(size, item.page.name, outcome.detail, item.page.text)
                if account is not None:
                    account.bad(item.page.name, outcome.reason, outcome.detail, size, item.page.text)
                continue
            page = item.page.with_text(outcome.text)
            if page is not item.page:
                counted.changed += 1
                item = Item(page, item.group, item.evaluated, item.number)
            counted.kept += 1
            counted.kept_bytes += page.size
            for reason, times in outcome.changes.items():
                counted.changes.setdefault(reason, Reason()).add(page.size, page.name, "", page.text, times)
            if outcome.label is not None:
                counted.labels[outcome.label] = counted.labels.get(outcome.label, 0) + 1
            left.append(item)
        return left

    def _outcomes(self, name: str, items: list[Item]) -> list[Outcome]:
        pages = [item.page for item in items]
        if name == FORM:
            return [self.form_step.normalize(page) for page in pages]
        step = self.built[name]
        if isinstance(step, Step):
            return step.apply_many(pages)
        found = self.found
        copies = [found.items(item.number) for item in items]
        return [step.apply(page, its) if len(its) else Kept(page.text) for page, its in zip(pages, copies, strict=True)]

    def _give_keys(self, source: str, items: list[Item], keys: KeyWriter | None) -> None:
        if keys is None:
            return
        assert self.part.after is not None
        step = self.built[self.part.after]
        assert isinstance(step, Comparison)
        compared = self._is_for(self.part.after, source)
        keys.add(step.keys([item.page for item in items]) if compared else None, len(items))


def write_quarantine(path: Path, bads: Sequence[BadRecord], source: str) -> None:
    with path.open("w", encoding="utf-8", errors="replace") as file:
        for bad in bads:
            file.write(json.dumps({"source": source, **asdict(bad)}, ensure_ascii=False) + "\n")
