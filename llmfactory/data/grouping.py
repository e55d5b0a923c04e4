"""The group-by of a comparison: keys of all documents are dealt by their value into partitions, each is sorted and looked at by
itself, and what was found is put together once.

A process needs the memory for one partition of the keys, whatever the size of the corpus, and for the copies that were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.clean.comparison import Comparison, Copies, Int64, Keys
from llmfactory.data.clean.models import Models
from llmfactory.data.clean.spec import CleanSpec
from llmfactory.data.shard import Shard, Shards, write_about
from llmfactory.data.tasks import Phase

KEYS, BORDERS, EVIDENCE = "keys.npy", "borders.npy", "evidence.bin"
KEY = np.dtype([("key", "<u8"), ("document", "<i8"), ("item", "<i4")])
PARTITION = 64 << 20
"""Bytes of text whose keys are one partition, about."""


def partitions_for(size: int) -> int:
    """Of a corpus of that many bytes."""
    return min(4096, max(1, -(-size // PARTITION)))


class KeyWriter:
    """Keys of one shard's documents, which are numbered from 0. Evidence is written as it comes."""

    def __init__(self, folder: Path, partitions: int) -> None:
        self.folder, self.partitions = folder, partitions
        self._rows: list[NDArray[np.void]] = []
        self._shape: tuple[int, ...] = ()
        self._type: np.dtype[np.generic] | None = None
        self._documents = 0

    def add(self, keys: Keys | None, documents: int) -> None:
        """Of the next so many documents; None: they are not compared."""
        if keys is not None:
            rows = np.empty(len(keys.key), KEY)
            rows["key"], rows["document"], rows["item"] = keys.key, keys.page + self._documents, keys.item
            self._rows.append(rows)
            if keys.evidence is not None:
                self._shape, self._type = keys.evidence.shape[1:], keys.evidence.dtype
                with (self.folder / EVIDENCE).open("ab") as file:
                    file.write(np.ascontiguousarray(keys.evidence).tobytes())
        self._documents += documents

    def close(self) -> dict[str, Any]:
        """What the shard must say of it."""
        rows = np.concatenate(self._rows) if self._rows else np.empty(0, KEY)
        partition = partition_of(rows["key"], self.partitions)
        order = np.argsort(partition, kind="stable")
        np.save(self.folder / KEYS, rows[order])
        np.save(self.folder / BORDERS, np.searchsorted(partition[order], np.arange(self.partitions + 1)))
        return {} if self._type is None else {"evidence": {"type": self._type.str, "shape": list(self._shape)}}


def partition_of(key: NDArray[np.uint64], partitions: int) -> Int64:
    """By the upper half of the key, evenly."""
    found: Int64 = ((key >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.int64)
    return found


class Evidences:
    """What the documents of all shards have as evidence, looked up by number."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    @cached_property
    def files(self) -> list[NDArray[np.generic] | None]:
        return [_evidence(shard) for shard in self.shards.shards]

    def __call__(self, documents: Int64) -> NDArray[np.generic]:
        shard = np.searchsorted(self.shards.starts, documents, side="right") - 1
        found: NDArray[np.generic] | None = None
        for number in np.unique(shard).tolist():
            file = self.files[number]
            if file is None:
                raise ValueError(f"the documents of shard {number} have no evidence")
            here = shard == number
            rows = file[documents[here] - self.shards.starts[number]]
            if found is None:
                found = np.empty((len(documents), *file.shape[1:]), file.dtype)
            found[here] = rows
        if found is None:
            raise ValueError("evidence of no documents was asked for")
        return found


def _evidence(shard: Shard) -> NDArray[np.generic] | None:
    """Of its documents, a row each, mapped; None: it has none."""
    about = shard.about.get("evidence")
    if about is None or not len(shard):
        return None
    return np.memmap(shard.folder / EVIDENCE, np.dtype(about["type"]), "r", shape=(len(shard), *about["shape"]))


@dataclass(kw_only=True)
class Grouping(Phase):
    """A task a partition: which of its items are copies."""

    name: str
    step: str
    clean: CleanSpec
    models: Models
    shards_folder: Path
    partitions: int
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.label = f"comparing ({self.step})"

    @cached_property
    def comparison(self) -> Comparison:
        built = self.clean.build(self.models)
        assert isinstance(built, Comparison)
        return built

    @cached_property
    def shards(self) -> Shards:
        return Shards.of(self.shards_folder)

    def sizes(self) -> Sequence[int]:
        return [max(1, self.shards.bytes // self.partitions)] * self.partitions

    def do(self, number: int, folder: Path) -> None:
        rows = self._rows(number)
        order = np.lexsort((rows["item"], rows["document"], rows["key"]))
        key, document = rows["key"][order], rows["document"][order]
        item = rows["item"][order].astype(np.int64)
        copies = self.comparison.copies(key, document, item, Evidences(self.shards))
        save(folder, copies)

    def _rows(self, number: int) -> NDArray[np.void]:
        found = []
        for shard, start in zip(self.shards.shards, self.shards.starts.tolist(), strict=False):
            low, high = np.load(shard.folder / BORDERS)[number : number + 2].tolist()
            rows = np.array(np.load(shard.folder / KEYS, mmap_mode="r")[low:high])
            rows["document"] += start
            found.append(rows)
        return np.concatenate(found) if found else np.empty(0, KEY)


@dataclass(kw_only=True)
class Settling(Phase):
    """One task: what is a copy in the end."""

    name: str
    grouping: Grouping
    groups_folder: Path
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.label = f"comparing ({self.grouping.step})"

    def sizes(self) -> Sequence[int]:
        return [1]

    def do(self, number: int, folder: Path) -> None:
        every = [load(self.groups_folder / f"{part:05d}") for part in range(self.grouping.partitions)]
        fields = ("document", "item", "first")
        together = Copies(*(np.concatenate([getattr(one, name) for one in every]) for name in fields))
        final = self.grouping.comparison.verdicts(together, Evidences(self.grouping.shards))
        order = np.lexsort((final.item, final.document))
        final = Copies(final.document[order], final.item[order], final.first[order])
        save(folder, final, clusters=clusters(final, self.grouping.shards))


def save(folder: Path, copies: Copies, **about: Any) -> None:
    np.save(folder / "copies.npy", np.stack([copies.document, copies.item, copies.first]))
    write_about(folder, copies=len(copies.document), **about)


def load(folder: Path, mapped: bool = False) -> Copies:
    found = np.load(folder / "copies.npy", mmap_mode="r" if mapped else None)
    return Copies(*found)


class Verdicts:
    """Copies by document."""

    def __init__(self, folder: Path) -> None:
        self.copies = load(folder, mapped=True)

    def items(self, document: int) -> Int64:
        """Of one document, sorted, each once."""
        low, high = np.searchsorted(self.copies.document, [document, document + 1]).tolist()
        return np.unique(self.copies.item[low:high])


SHOWN, MEMBERS = 10, 4
"""Clusters of copies that the report shows, and how many names of each."""


def clusters(copies: Copies, shards: Shards) -> dict[str, Any]:
    """The largest groups of documents that share something with the same first one."""
    different = copies.document != copies.first
    pairs = np.unique(np.stack([copies.first[different], copies.document[different]]), axis=1)
    firsts, counts = np.unique(pairs[0], return_counts=True)
    order = np.lexsort((firsts, -counts))[:SHOWN]
    largest = []
    for first, count in zip(firsts[order].tolist(), counts[order].tolist(), strict=True):
        entry = shards.entry(first)
        others = pairs[1][pairs[0] == first][:MEMBERS].tolist()
        names = [entry.name, *(shards.entry(number).name for number in others)]
        largest.append({"documents": count + 1, "names": names, "text": entry.text[:300]})
    return {"clusters": len(firsts), "copies": int(counts.sum()), "largest": largest}
