"""summary.csv and summary.html of a sweep, read from what its members left in their folders."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfactory.run.folder import read_overrides, read_result
from llmfactory.run.plain_file import write_whole

FIGURES = ("held_out_loss", "perplexity", "bits_per_byte", "tokens_per_second", "parameters", "step", "seconds")
"""Figures of a result that the table shows, where any member has them."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What the end of a sweep has to say."""

    best: list[str] | None
    """Overrides of the member with the lowest objective; None: no member has one."""
    failed: dict[int, str]
    """Member number and error."""


def write_summary(folder: Path, varied: Sequence[str], objective: str, count: int | None = None) -> Summary:
    """`varied` are the swept keys, in the order of the command line; `count`: of members, where it is known (others are an
    earlier command's)."""
    members = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    members = [path for path in members if count is None or int(path.name) < count]
    rows = [row for row in (_row(member, varied) for member in members) if row is not None]
    rows.sort(key=lambda row: _number(row.get(objective)))
    shown = [name for name in (objective, *FIGURES) if any(row.get(name) is not None for row in rows)]
    columns = list(dict.fromkeys(["member", *varied, *shown, "status", "error"]))
    failed = {int(row["member"]): str(row["error"]) for row in rows if row.get("error")}
    best = read_overrides(folder / str(rows[0]["member"])) if rows and math.isfinite(_number(rows[0].get(objective))) else None
    write_whole(folder / "summary.csv", _table(columns, rows))
    _write_page(folder, rows, columns, varied, objective, best, len(failed))
    return Summary(best, dict(sorted(failed.items())))


def _row(member: Path, varied: Sequence[str]) -> dict[str, Any] | None:
    """None for a member that never began."""
    result = read_result(member)
    if result is None:
        return None
    given = dict(override.split("=", 1) for override in read_overrides(member) if "=" in override)
    values = {key: given.get(key, "") for key in varied}
    figures = {key: result.get(key) for key in (*FIGURES, "status")}
    return {"member": int(member.name), **values, **figures, "error": _brief(result.get("error"))}


def _brief(error: str | None) -> str | None:
    """One line of an error: what was raised, or a report's first problem. The member's result.json has it whole."""
    lines = (error or "").strip().splitlines()
    return None if not lines else lines[-1 if lines[0].startswith("Traceback") else 0]


def _number(value: Any) -> float:
    """For sorting: what is missing or not a number comes last."""
    return float(value) if isinstance(value, (int, float)) and not math.isnan(value) else math.inf


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{key: "" if value is None else value for key, value in row.items()} for row in rows])
    return buffer.getvalue()


def _write_page(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    varied: Sequence[str],
    objective: str,
    best: list[str] | None,
    failed: int,
) -> None:
    from llmfactory.run.curves import parallel_coordinates  # matplotlib takes a second to load
    from llmfactory.run.report import render

    done = [row for row in rows if math.isfinite(_number(row.get(objective)))]
    axes = {key: [_value(row[key]) for row in done] for key in (*varied, objective)}
    shown = [
        {key: f"{cell:.5g}" if isinstance(cell, float) else cell for key, cell in row.items() if cell is not None} for row in rows
    ]
    page = render(
        "summary.html.jinja",
        name=folder.name,
        rows=shown,
        columns=columns,
        objective=objective,
        failed=failed,
        best=shlex.join(best) if best is not None else None,
        plot=parallel_coordinates(axes, objective) if done and varied else None,
    )
    write_whole(folder / "summary.html", page)


def _value(text: Any) -> object:
    """A swept value as a number where it is one."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text
