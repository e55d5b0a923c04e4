"""What the rows of a file are, told from the first of them, for the report and for messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from llmfactory.data.record.formats import format_of, named, parsed
from llmfactory.data.record.record import BadRow, Kind

LOOKED_AT = 200
"""Rows from which a format is told."""
SHOWN = 300
"""Characters of an example."""
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Detected:
    """Of some rows."""

    rows: int
    formats: dict[str, int]
    """How many rows are of each format, the most frequent first; `unknown`: of none."""
    readable: int
    """Rows that hold a record, of whichever format."""
    fields: tuple[str, ...]
    """That rows of the most frequent format have."""
    example: str
    """The first such row, shortened."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why rows hold none."""

    @property
    def format(self) -> str:
        return next(iter(self.formats), UNKNOWN)

    @property
    def kind(self) -> Kind | None:
        return None if self.format == UNKNOWN else named(self.format).kind

    @property
    def share(self) -> float:
        """Rows of the most frequent format, of all."""
        return self.formats.get(self.format, 0) / max(self.rows, 1)


def detect(texts: Iterable[str], kinds: Sequence[Kind] = tuple(Kind), most: int = LOOKED_AT) -> Detected:
    """`texts`: rows as JSON; `kinds`: which records are looked for."""
    formats: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    first: dict[str, tuple[tuple[str, ...], str]] = {}
    rows = 0
    for rows, text in enumerate(islice(texts, most), 1):  # noqa: B007
        name = UNKNOWN
        try:
            row = parsed(text)
            fit = format_of(row, kinds)
            if fit is not None:
                name = fit.name
                first.setdefault(name, (tuple(sorted(row)), text[:SHOWN]))
                fit.read(row)
            else:
                reasons["no known format"] += 1
        except BadRow as error:
            reasons[error.reason] += 1
        formats[name] += 1
    ordered = dict(sorted(formats.items(), key=lambda item: (item[0] == UNKNOWN, -item[1], item[0])))
    fields, example = first.get(next(iter(ordered), UNKNOWN), ((), ""))
    return Detected(rows, ordered, rows - sum(reasons.values()), fields, example, dict(reasons.most_common()))


def told(found: Detected) -> list[tuple[str, str]]:
    """For a report page: what was found, a line each."""
    if not found.rows:
        return [("format", "no rows")]
    shares = ", ".join(f"{name} {count / found.rows:.0%}" for name, count in found.formats.items())
    lines = [
        ("format", f"{found.format} ({found.kind.value if found.kind else 'of no kind that is known'})"),
        ("formats of the first rows", shares),
        ("fields", ", ".join(found.fields)),
        ("rows that can be read", f"{found.readable} of {found.rows}"),
        ("example", found.example),
    ]
    if found.reasons:
        lines.insert(4, ("what is wrong with others", ", ".join(f"{count} × {why}" for why, count in found.reasons.items())))
    return lines
