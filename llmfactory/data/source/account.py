"""What a source could not make documents of, record by record. Nothing is ever left out silently."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmfactory.core.errors import UserError

SAMPLES = 5
"""How many records of a reason are shown."""
SHOWN = 500
"""Characters of a bad record that are kept."""


@dataclass(slots=True)
class Dropped:
    """Records that were left out for one reason."""

    documents: int = 0
    bytes: int = 0
    samples: list[str] = field(default_factory=list)
    """The first few, as `where: what`."""


@dataclass(slots=True)
class Drops:
    """Everything that was left out, by reason."""

    by_reason: dict[str, Dropped] = field(default_factory=dict)

    def add(self, reason: str, sample: str, size: int = 0) -> None:
        dropped = self.by_reason.setdefault(reason, Dropped())
        dropped.documents += 1
        dropped.bytes += size
        if len(dropped.samples) < SAMPLES:
            dropped.samples.append(sample)

    def plain(self) -> dict[str, dict[str, Any]]:
        return {
            reason: {"documents": dropped.documents, "bytes": dropped.bytes, "samples": dropped.samples}
            for reason, dropped in sorted(self.by_reason.items())
        }


@dataclass(slots=True)
class BadRecord:
    """One that was set aside."""

    where: str
    """File and line, row or member."""
    reason: str
    detail: str
    content: str
    """Its beginning."""


@dataclass(slots=True)
class Account:
    """Of one unit of a source."""

    allowed: float
    """Share of the records that may be bad; 0: the first one is an error."""
    key: str = "data.source.bad_share"
    """What says so, for messages."""
    good: int = 0
    """Records that could be read: what bad ones are a share of. A source counts them: lines of a plain text, else records."""
    bads: list[BadRecord] = field(default_factory=list)
    drops: Drops = field(default_factory=Drops)

    def bad(self, where: str, reason: str, detail: str = "", size: int = 0, content: str | bytes = "") -> None:
        """A record that cannot be read is set aside. Raises UserError where none may be."""
        about = f"{where}: {reason}: {detail}" if detail else f"{where}: {reason}"
        if not self.allowed:
            raise UserError(f"{about}. Mend it, or let a share of bad records be set aside: {self.key}=0.01")
        text = content.decode(errors="replace") if isinstance(content, bytes) else content
        self.bads.append(BadRecord(where, reason, detail, text[:SHOWN]))
        self.drops.add(reason, about, size)

    def left_out(self, reason: str, where: str, size: int = 0) -> None:
        """A record that is fine but of no use (an empty text)."""
        self.drops.add(reason, where, size)


def insist_on_share(bad: int, total: int, allowed: float, first: str, key: str = "data.source.bad_share") -> None:
    """Raises UserError where more than the allowed share of all records is bad."""
    if bad > allowed * total:
        raise UserError(f"{bad} of {total} records cannot be read, more than {key}={allowed} allows; the first is {first}")
