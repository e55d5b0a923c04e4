"""What a line came to: figures with intervals over records and seeds, and a page with the samples of all models side by side."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmfactory.run.display import duration
from llmfactory.run.folder import read_overrides, read_result
from llmfactory.run.line_plan import Step
from llmfactory.run.plain_file import write_whole
from llmfactory.stage.examine import FIRST, ITEMS, intervals, load
from llmfactory.stage.generate import printable

SHOWN = ("held_out_loss", "perplexity", "held_out_accuracy", "held_out_reward", "accuracy")
"""Figures of a step that the table shows, the first two that it has."""


def measured(planned: list[list[Step]]) -> dict[str, Any]:
    """The measures of each step that examines, over all seeds together; and the held-out loss of the last step that has one."""
    found: dict[str, Any] = {"measures": {}, "init": firsts(planned[0])}
    for step in planned[0]:
        folders = [one.folder for steps in planned for one in steps if one.name == step.name]
        if all((folder / ITEMS).is_file() for folder in folders):
            found["measures"][step.name] = intervals([load(folder / ITEMS) for folder in folders])
        loss = (read_result(step.folder) or {}).get("held_out_loss")
        if loss is not None:
            found["held_out_loss"] = loss
    return found


def firsts(steps: list[Step]) -> dict[str, str]:
    """Of each step that starts from an earlier one, that one's name."""
    by_folder = {str(step.folder): step.name for step in steps}
    return {step.name: by_folder[at] for step in steps if (at := step.composed.plain["init"]) in by_folder}


def told(model: str, first: str | None) -> str:
    """A model's name in a table, where `init` is the step that it was made by."""
    return model if first is None else re.sub(rf"\b{FIRST}\b", first, model)


def rows_of(result: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """(step, measure, model, mean, interval) of every figure."""
    for step, measures in result["measures"].items():
        for measure, models in measures.items():
            for model, one in models.items():
                form = "+.4f" if " - " in model else ".4f"
                remark = f"{one['low']:{form}} to {one['high']:{form}}, {one['items']:,} records"
                remark += f", {one['seeds']} seeds" if one["seeds"] > 1 else ""
                yield step, measure, told(model, result["init"].get(step)), f"{one['mean']:{form}}", remark


def show_line(result: dict[str, Any]) -> None:
    """The final table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    steps = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for one in result["steps"]:
        steps.add_row(one["step"], f"seed {one['seed']}", _took(one), ", ".join(_figures(one["figures"])))
    console.print(steps)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for step, measure, model, mean, remark in rows_of(result):
        table.add_row(step, measure.replace("_", " "), model, f"[bold]{mean}[/]", remark)
    console.print(table)


def _took(one: dict[str, Any]) -> str:
    return duration(one["figures"]["seconds"]) if one["ran"] and "seconds" in one["figures"] else "was there"


def _figures(one: dict[str, Any]) -> list[str]:
    return [f"{key.replace('_', ' ')} {one[key]:.4f}" for key in SHOWN if isinstance(one.get(key), float)][:2]


def samples_of(planned: list[list[Step]]) -> dict[str, list[dict[str, Any]]]:
    """Of each step of the first seed that shows some: question, answer and what each model wrote."""
    found = {step.name: (read_result(step.folder) or {}).get("samples") for step in planned[0]}
    first = firsts(planned[0])
    return {
        name: [{told(key, first.get(name)): _text(value) for key, value in one.items()} for one in some]
        for name, some in found.items()
        if some
    }


def _text(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))


def write_line_report(folder: Path, planned: list[list[Step]]) -> None:
    from llmfactory.run.report import render

    result = read_result(folder) or {}
    steps = [
        {**one, "stage": one["figures"].get("stage"), "figures": ", ".join(_figures(one["figures"])), "took": _took(one)}
        for one in result["steps"]
    ]
    ancestors = {step.name: ", ".join(step.ancestors) for step in planned[0]}
    overrides = {step.name: step.composed.overrides for step in planned[0]}
    page = render(
        "line.html.jinja",
        name=folder.name,
        seconds=duration(result["seconds"]),
        steps=steps,
        ancestors=ancestors,
        overrides=overrides,
        measures=[(*row, "seed" if " - " in row[2] else "") for row in rows_of(result)],
        samples=samples_of(planned),
        typed=read_overrides(folder),
    )
    write_whole(folder / "report.html", page)
