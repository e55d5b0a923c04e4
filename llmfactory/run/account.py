"""The account of a preparation for the report page: a funnel of the steps, sources, lengths, labels, reasons with samples, copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmfactory.run.curves import Points, curves

Plain = Mapping[str, Any]
LENGTHS = {"read": "as read", "kept": "kept"}
MOST = 40
"""Labels that are listed."""


def account_of(counts: Plain) -> dict[str, Any]:
    """What `templates/preparation.html.jinja` shows of `Prepared.counts`."""
    steps = counts["steps"]
    return {
        "funnel": funnel(steps),
        "sources": [source_row(name, one) for name, one in counts["sources"].items()],
        "detected": list(counts.get("detected", {}).items()),
        "plots": lengths(counts["lengths"]),
        "labels": [(name, labels(step["labels"])) for name, step in steps.items() if step["labels"]],
        "reasons": [
            {"title": f"{name.capitalize()}: {what}", "reasons": reasons(step[key])}
            for name, step in steps.items()
            for key, what in (("dropped", "left out"), ("changes", "changed"))
            if step[key]
        ],
        "copies": list(counts["copies"].items()),
    }


def funnel(steps: Plain) -> list[dict[str, Any]]:
    """A row a step; its bar is the share of all records that are left after it."""
    first = max(1, next(iter(steps.values()))["seen"]) if steps else 1
    return [
        {
            "name": name,
            "seen": f"{step['seen']:,}",
            "kept": f"{step['kept']:,}",
            "share": step["kept"] / first,
            "changed": f"{step['changed']:,}" if step["changed"] else "",
            "dropped": f"{step['seen'] - step['kept']:,}" if step["seen"] > step["kept"] else "",
            "bytes": size(step["kept_bytes"]),
        }
        for name, step in steps.items()
    ]


def source_row(name: str, source: Plain) -> list[str]:
    read, train, held_out = source["read"], source["train"], source["held_out"]
    numbers = [read.get(key, 0) for key in ("units", "records", "bad", "documents")]
    return [
        name,
        *(f"{number:,}" for number in numbers),
        size(read.get("bytes", 0)),
        *(f"{one['tokens']:,}" for one in (train, held_out)),
    ]


def lengths(found: Plain) -> list[str]:
    """SVG of how long documents were, as read and as kept."""
    lines: dict[str, Points] = {
        shown: ([int(power) for power in found[when]], list(found[when].values()))
        for when, shown in LENGTHS.items()
        if found.get(when)
    }
    return [curves("Documents by length", lines, "bytes, from", "documents", logarithmic=True)] if lines else []


def labels(counts: Mapping[str, int]) -> list[tuple[str, str, float]]:
    total = sum(counts.values())
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST]
    return [(label, f"{count:,}", count / total) for label, count in common]


def reasons(found: Plain) -> list[dict[str, Any]]:
    """The most frequent first."""
    ordered = sorted(found.items(), key=lambda item: (-item[1]["documents"], item[0]))
    return [{"name": reason, "count": counted(one), "samples": one["samples"]} for reason, one in ordered]


def counted(one: Plain) -> str:
    times = f", {one['times']:,} times" if one["times"] > one["documents"] else ""
    return f"{one['documents']:,} document{'s' if one['documents'] != 1 else ''}{times}"


def size(count: int) -> str:
    """Bytes in a unit that people read."""
    value = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"
