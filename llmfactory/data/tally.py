"""The account of a corpus on its way through the steps: what each kept, changed and dropped, why, with samples. Accounts add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

SAMPLES = 5
"""Documents that are shown for each reason: those with the lowest hashes, so that it is all the same who met them first."""
EXCERPT = 400
"""Characters of each."""


@dataclass(slots=True)
class Sample:
    rank: int
    """Hash of its name and text."""
    name: str
    detail: str
    text: str
    """Its beginning."""

    @classmethod
    def of(cls, name: str, detail: str, text: str) -> Sample:
        beginning = text[:EXCERPT]
        hashed = blake2b(f"{name}\0{beginning}".encode(errors="replace"), digest_size=7).digest()
        return cls(int.from_bytes(hashed, "big"), name, detail, beginning)


@dataclass(slots=True)
class Reason:
    """Documents to which one thing happened."""

    documents: int = 0
    bytes: int = 0
    times: int = 0
    """How often it happened, where that can be several times a document."""
    samples: list[Sample] = field(default_factory=list)

    def add(self, size: int, name: str, detail: str, text: str, times: int = 1) -> None:
        self.documents += 1
        self.bytes += size
        self.times += times
        self.keep(name, detail, text)

    def keep(self, name: str, detail: str, text: str) -> None:
        """As a sample, if its hash is low enough."""
        self._keep([Sample.of(name, detail, text)])

    def merge(self, other: Reason) -> None:
        self.documents += other.documents
        self.bytes += other.bytes
        self.times += other.times
        self._keep(other.samples)

    def _keep(self, more: Iterable[Sample]) -> None:
        new = [sample for sample in more if len(self.samples) < SAMPLES or sample.rank < self.samples[-1].rank]
        if new:
            self.samples = sorted([*self.samples, *new], key=lambda sample: (sample.rank, sample.name))[:SAMPLES]


@dataclass(slots=True)
class StepTally:
    """What one step did."""

    seen: int = 0
    seen_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    changed: int = 0
    """Of the kept ones."""
    dropped: dict[str, Reason] = field(default_factory=dict)
    changes: dict[str, Reason] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    """What the documents were found to be."""

    def merge(self, other: StepTally) -> None:
        for name in ("seen", "seen_bytes", "kept", "kept_bytes", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, its in ((self.dropped, other.dropped), (self.changes, other.changes)):
            for reason, one in its.items():
                mine.setdefault(reason, Reason()).merge(one)
        for label, count in other.labels.items():
            self.labels[label] = self.labels.get(label, 0) + count


READ = "read"
"""The step that comes first: reading."""


@dataclass(slots=True)
class Tally:
    """What all steps did, in order, and how long documents were before and after."""

    steps: dict[str, StepTally] = field(default_factory=dict)
    lengths: dict[str, dict[str, int]] = field(default_factory=dict)
    """`read` and `kept` -> power of two -> documents of at least that many bytes, and less than the next."""

    def step(self, name: str) -> StepTally:
        return self.steps.setdefault(name, StepTally())

    def length(self, when: str, size: int) -> None:
        counts = self.lengths.setdefault(when, {})
        power = str(1 << max(0, size.bit_length() - 1))
        counts[power] = counts.get(power, 0) + 1

    def merge(self, other: Tally) -> None:
        for name, step in other.steps.items():
            self.step(name).merge(step)
        for when, counts in other.lengths.items():
            mine = self.lengths.setdefault(when, {})
            for power, count in counts.items():
                mine[power] = mine.get(power, 0) + count

    def plain(self) -> dict[str, Any]:
        """For JSON; mappings without order are sorted."""
        found = asdict(self)
        for step in found["steps"].values():
            for key in ("dropped", "changes", "labels"):
                step[key] = dict(sorted(step[key].items()))
        for when, counts in found["lengths"].items():
            found["lengths"][when] = dict(sorted(counts.items(), key=lambda item: int(item[0])))
        return found

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Tally:
        steps = {}
        for name, step in plain["steps"].items():
            reasons = {
                key: {
                    reason: Reason(**{**one, "samples": [Sample(**sample) for sample in one["samples"]]})
                    for reason, one in step[key].items()
                }
                for key in ("dropped", "changes")
            }
            steps[name] = StepTally(**{**step, **reasons, "labels": dict(step["labels"])})
        return cls(steps, {when: dict(counts) for when, counts in plain["lengths"].items()})
