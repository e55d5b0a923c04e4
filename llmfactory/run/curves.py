"""Plots as inline SVG: drawn once by matplotlib, so that a page needs no script, no font and no network."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float]]
COLOURS = ("#1f5fa8", "#c2571a", "#3a7d44", "#7a4fa0", "#8a6d1f")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
}


def curves(title: str, lines: Mapping[str, Points], x_label: str, unit: str = "", logarithmic: bool = False) -> str:
    """One plot of one or more lines; the points of a sparse line are marked. `logarithmic`: both axes."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for colour, (name, (x, y)) in zip(COLOURS, lines.items(), strict=False):
            axes.plot(x, y, label=name, color=colour, linewidth=1.4, marker="o" if len(x) <= 30 else "", markersize=3)
        axes.set_title(title, loc="left", fontsize=11, color="#111111")
        axes.set_xlabel(x_label)
        axes.set_ylabel(unit)
        if logarithmic:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
        if len(lines) > 1:
            axes.legend()
        return _svg(figure, title)


def parallel_coordinates(columns: Mapping[str, Sequence[object]], objective: str) -> str:
    """A line a row through one axis a column; the darker, the lower the last column, the objective.

    Numbers lie on their own scale (logarithmic if all are positive and span more than a factor of 30), words evenly.
    """
    names = list(columns)
    heights = {name: _heights(columns[name]) for name in names}
    with mpl.rc_context({**STYLE, "svg.hashsalt": "sweep", "axes.grid": False}):
        figure = Figure(figsize=(max(5.6, 1.9 * len(names)), 3.8), layout="constrained")
        axes = figure.add_subplot()
        for row in range(len(columns[objective])):
            y = [heights[name][0][row] for name in names]
            if all(math.isfinite(value) for value in y):
                axes.plot(
                    range(len(names)), y, color="#1f5fa8", alpha=1.0 - 0.75 * y[-1], linewidth=1.8, marker="o", markersize=3.5
                )
        for place, name in enumerate(names):
            axes.axvline(place, color="#999999", linewidth=1)
            for text, height in heights[name][1]:
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
                axes.annotate(text, (place, height), xytext=(6, 0), textcoords="offset points", fontsize=8, va="center", bbox=box)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks([])
        axes.set_xlim(-0.2, len(names) - 0.5)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        return _svg(figure, "sweep")


def _heights(values: Sequence[object]) -> tuple[list[float], list[tuple[str, float]]]:
    """Height in [0, 1] of each value, and the ticks (text, height) of its axis."""
    numbers = [float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None for value in values]
    known = [value for value in numbers if value is not None and math.isfinite(value)]
    if None in numbers or not known:
        words = list(dict.fromkeys(map(str, values)))
        place = {word: (index + 0.5) / len(words) for index, word in enumerate(words)}
        return [place[str(value)] for value in values], list(place.items())
    low, high = min(known), max(known)
    scale = math.log if low > 0 and high / low > 30 else float
    span = scale(high) - scale(low)

    def height(value: float) -> float:
        if not math.isfinite(value):
            return math.nan
        return (scale(value) - scale(low)) / span if span else 0.5

    ticks = dict.fromkeys(known) if len(set(known)) <= 6 else dict.fromkeys((low, high))
    return [height(value) for value in numbers if value is not None], [(f"{value:.5g}", height(value)) for value in ticks]


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{title.lower()}"', 1)
