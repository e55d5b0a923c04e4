"""report.html: one run at a glance, written from the files of its folder alone, so that it can be written again at any time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jinja2 import Environment, PackageLoader, StrictUndefined

from llmfactory.run.account import account_of
from llmfactory.run.curves import Points, curves
from llmfactory.run.decisions import FILE, Decisions, read_lines
from llmfactory.run.figures import figures
from llmfactory.run.flame import FLAME
from llmfactory.run.folder import read_config, read_overrides, read_result
from llmfactory.run.plain_file import write_whole
from llmfactory.stage.plan import DRAWING
from llmfactory.tracking.csv import read_metrics

PLOTS = (
    ("Loss", "nats", {"training": "loss", "held out": "held_out_loss"}),
    ("Reward", "", {"training": "reward", "held out": "held_out_reward"}),
    ("Divergence", "nats per token", {"from the reference": "kl", "from the reference, before steps": "kl_to_reference"}),
    ("Learning rate", "", {"learning rate": "lr"}),
    ("Gradient norm", "", {"gradient norm": "grad_norm"}),
    ("Throughput", "tokens/s", {"tokens/s": "tokens_per_second"}),
)
"""Title, unit, and the metrics drawn, as {shown name: column of metrics.csv}."""


def render(template: str, **values: Any) -> str:
    """A page of `templates/`; everything that is put into it is escaped, unless it was marked as markup."""
    pages = Environment(loader=PackageLoader("llmfactory.run"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return pages.get_template(template).render(**values)


def plots(rows: list[dict[str, str]]) -> list[str]:
    """SVG of each plot that there is something to draw for."""
    drawn = []
    for title, unit, wanted in PLOTS:
        lines: Mapping[str, Points] = {
            name: ([int(row["step"]) for row in rows if column in row], [float(row[column]) for row in rows if column in row])
            for name, column in wanted.items()
        }
        lines = {name: points for name, points in lines.items() if points[0]}
        if lines:
            drawn.append(curves(title, lines, "step", unit))
    return drawn


def bandwidths(measured: Mapping[str, Any] | None) -> list[str]:
    """SVG of bus bandwidth by message size, one an axis, of what `stage=bench_comm` measured."""
    drawn = []
    for axis, found in (measured or {}).items():
        lines: Mapping[str, Points] = {
            name: (
                [point["bytes"] for point in operation["points"]],
                [point["bus_bandwidth_bytes_per_s"] / 1e9 for point in operation["points"]],
            )
            for name, operation in found["collectives"].items()
        }
        title = f"Bus bandwidth, {axis}: {found['processes']} processes"
        drawn.append(curves(title, lines, "bytes of the message", "GB/s", logarithmic=True))
    return drawn


def write_report(folder: Path) -> None:
    config, result = read_config(folder), read_result(folder) or {}
    drawing, flame = folder / DRAWING, folder / FLAME
    if decided := read_lines(folder / FILE):
        tables = result.get("tables", [])
        result = {**result, "tables": [*tables, ("decisions of the guard", Decisions(folder / FILE, decided).table())]}
    page = render(
        "report.html.jinja",
        name=folder.name,
        result=result,
        figures=figures(result),
        plots=plots(read_metrics(folder / "metrics.csv")) + bandwidths(result.get("communication")),
        account=account_of(result["preparation"]) if "preparation" in result else None,
        drawing=drawing.read_text(encoding="utf-8") if drawing.is_file() else None,
        flame=flame.read_text(encoding="utf-8") if flame.is_file() else None,
        overrides=read_overrides(folder),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100),
    )
    write_whole(folder / "report.html", page)
