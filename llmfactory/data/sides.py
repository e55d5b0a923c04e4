"""The tasks that decide which documents are trained on and which are held out, and what was decided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import UserError
from llmfactory.data.overlap import HeldOut
from llmfactory.data.shard import Piece, Shard, Shards, read_about, write_about
from llmfactory.data.split import Cut, Side, border, choose, choose_by, largest, missing
from llmfactory.data.tally import Reason, StepTally, Tally
from llmfactory.data.tasks import Phase

PIECE = 32 << 20
"""Bytes of text that are looked through for held-out sequences in one task."""
SIDES, CUTS = "sides.npy", "cuts"
SPLIT = "held out"
"""Name of this step in the account."""


@dataclass(frozen=True, slots=True)
class SourceTraits:
    """What a source says of how it may be split."""

    can_cut: bool
    max_overlap: float
    weights: Mapping[str, int] | None = None


class Sides:
    """What was decided of each document."""

    def __init__(self, folder: Path) -> None:
        self.side: NDArray[np.uint8] = np.load(folder / SIDES, mmap_mode="r")
        """[documents], a `Side` each."""
        cuts = [Cut(*cut) for cut in read_about(folder)[CUTS]]
        self.cuts = {cut.document: cut.place for cut in cuts}

    def parts(self, number: int, text: str) -> Iterator[tuple[str, str]]:
        """(part, text) of a document: none, one, or both where it was cut."""
        if number in self.cuts:
            data = text.encode()
            yield "train", data[: self.cuts[number]].decode()
            yield "held_out", data[self.cuts[number] :].decode()
        elif self.side[number] in (Side.train, Side.held_out):
            yield Side(self.side[number]).name, text


def columns(shards: Sequence[Shard]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.bool_]]:
    """(group, size, evaluated) of the documents of some shards."""
    rows = [shard.index for shard in shards]
    group = np.concatenate([row["group"] for row in rows]) if rows else np.empty(0, np.uint64)
    size = np.concatenate([shard.sizes for shard in shards]) if rows else np.empty(0, np.int64)
    evaluated = np.concatenate([row["evaluated"].astype(bool) for row in rows]) if rows else np.empty(0, bool)
    return group, size, evaluated


@dataclass(kw_only=True)
class Splitting(Phase):
    """One task: the sides, before anybody has looked whether held-out texts also stand in the training part."""

    name: str = "split"
    label: str = "holding out"
    shards_folder: Path
    share: float
    most: int
    traits: Mapping[str, SourceTraits]

    def sizes(self) -> Sequence[int]:
        return [1]

    def do(self, number: int, folder: Path) -> None:
        shards = Shards.of(self.shards_folder)
        sides, cuts = [], []
        wanted = self.most // max(1, len({shard.source for shard in shards.shards}))
        for source, first, its in by_source(shards):
            group, size, evaluated = columns(its)
            weights = self.traits[source].weights
            if weights is None:
                side = choose(group, size, evaluated, self.share, wanted)
            else:
                side = choose_by(weights, group, evaluated, self.share, wanted)
            lacking = missing(side, size, evaluated, self.share, wanted)
            if lacking is not None and self.traits[source].can_cut and (cut := _cut(shards, first, group, size, side, lacking)):
                cuts.append(cut)
            sides.append(side)
        np.save(folder / SIDES, np.concatenate(sides) if sides else np.empty(0, np.uint8))
        write_about(folder, **{CUTS: [[cut.document, cut.place] for cut in cuts]})


def _cut(
    shards: Shards, first: int, group: NDArray[np.uint64], size: NDArray[np.int64], side: NDArray[np.uint8], wanted: int
) -> Cut | None:
    """Hold out the end of the largest document that has no relative."""
    number = largest(group, size, side)
    if number is None:
        return None
    place = border(shards.entry(first + number).text.encode(), wanted)
    return None if place is None else Cut(first + number, place)


def by_source(shards: Shards) -> Iterator[tuple[str, int, list[Shard]]]:
    """(source, number of its first document, its shards) of each source; those of one stand together."""
    names = list(dict.fromkeys(shard.source for shard in shards.shards))
    for name in names:
        places = [place for place, shard in enumerate(shards.shards) if shard.source == name]
        yield name, int(shards.starts[places[0]]), [shards.shards[place] for place in places]


def held_out_texts(shards: Shards, sides: Sides) -> Iterator[tuple[int, str]]:
    """(number, text) of each whole document that is to be held out. Ends of cut ones go on where the training part stops."""
    for shard, start in zip(shards.shards, shards.starts.tolist(), strict=False):
        wanted = np.flatnonzero(sides.side[start : start + len(shard)] == Side.held_out)
        for place, entry in zip(wanted.tolist(), shard.some(wanted.tolist()), strict=True):
            yield start + place, entry.text


@dataclass(kw_only=True)
class Looking(Phase):
    """A task a piece of the corpus: which held-out sequences stand in its training documents."""

    name: str = "overlap"
    label: str = "looking for held-out text"
    shards_folder: Path
    split_folder: Path

    @cached_property
    def shards(self) -> Shards:
        return Shards.of(self.shards_folder)

    @cached_property
    def sides(self) -> Sides:
        return Sides(self.split_folder)

    @cached_property
    def held_out(self) -> HeldOut:
        return HeldOut([text for _, text in held_out_texts(self.shards, self.sides)])

    @cached_property
    def pieces(self) -> list[Piece]:
        return self.shards.pieces(PIECE) if (self.sides.side == Side.held_out).any() else []

    def sizes(self) -> Sequence[int]:
        return [piece.bytes for piece in self.pieces]

    def do(self, number: int, folder: Path) -> None:
        piece = self.pieces[number]
        entries = self.shards.shards[piece.shard].read(piece.first, piece.stop)
        texts = (
            text
            for place, entry in enumerate(entries, piece.start)
            for part, text in self.sides.parts(place, entry.text)
            if part == "train"
        )
        seen = self.held_out.look(texts)
        for length, found in seen.items():
            np.save(folder / f"{length}.npy", found)
        write_about(folder)


@dataclass(kw_only=True)
class Deciding(Phase):
    """One task: held-out documents that stand in the training part are left out; the sides as they stay, and their account."""

    name: str = "sides"
    label: str = "looking for held-out text"
    looking: Looking
    looked_folder: Path
    share: float
    traits: Mapping[str, SourceTraits]

    def sizes(self) -> Sequence[int]:
        return [1]

    def do(self, number: int, folder: Path) -> None:
        shards, before = self.looking.shards, self.looking.sides
        side = np.array(before.side)
        tally = Tally()
        counted = tally.step(SPLIT)
        self._drop_overlap(shards, before, side, counted)
        for shard, start in zip(shards.shards, shards.starts.tolist(), strict=False):
            _count(shard, side[start : start + len(shard)], counted)
        if self.share:
            self._insist(side, before)
        np.save(folder / SIDES, side)
        cuts = [[document, place] for document, place in before.cuts.items()]
        write_about(folder, tally=tally.plain(), **{CUTS: cuts})

    def _drop_overlap(self, shards: Shards, before: Sides, side: NDArray[np.uint8], counted: StepTally) -> None:
        numbers = [number for number, _ in held_out_texts(shards, before)]
        if not numbers:
            return
        seen: dict[int, NDArray[np.bool_]] = {}
        for piece in range(len(self.looking.pieces)):
            for path in (self.looked_folder / f"{piece:05d}").glob("*.npy"):
                found = np.load(path)
                seen[int(path.stem)] = found | seen.get(int(path.stem), np.zeros_like(found))
        owner = np.searchsorted(shards.starts, numbers, side="right") - 1
        for number, shard, share in zip(numbers, owner.tolist(), self.looking.held_out.shares(seen).tolist(), strict=True):
            if share > self.traits[shards.shards[shard].source].max_overlap:
                side[number] = Side.overlaps
                entry = shards.entry(number)
                detail = f"{share:.0%} of its 13-word sequences"
                _left_out(counted, "held out, but also in the training part", entry.name, detail, entry.text)

    def _insist(self, side: NDArray[np.uint8], before: Sides) -> None:
        if not (side == Side.train).any():
            raise UserError("data.held_out leaves nothing to train on: all documents are of one group. Try data.held_out=0")
        if not (side == Side.held_out).any() and not before.cuts:
            raise UserError(
                "nothing can be held out: every document that could be also stands in the training part, or there is only one. "
                "Try data.held_out=0 (no evaluation), or more documents"
            )


def _count(shard: Shard, side: NDArray[np.uint8], counted: StepTally) -> None:
    sizes = shard.sizes
    counted.seen += len(shard)
    counted.seen_bytes += shard.bytes
    kept = (side == Side.train) | (side == Side.held_out)
    counted.kept += int(kept.sum())
    counted.kept_bytes += int(sizes[kept].sum())
    for entry in shard.some(np.flatnonzero(side == Side.training_only).tolist()):
        _left_out(counted, "of a held-out group, for training only", entry.name, "", entry.text)


def _left_out(counted: StepTally, reason: str, name: str, detail: str, text: str) -> None:
    counted.dropped.setdefault(reason, Reason()).add(len(text.encode()), name, detail, text)


def account(folder: Path) -> Tally:
    """That of `Deciding`."""
    return Tally.of(read_about(folder)["tally"])
