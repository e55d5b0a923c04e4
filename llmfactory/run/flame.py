"""Flame graphs (Gregg 2016): stacks with the time that was spent in each, as collapsed text and as a picture.

In the picture the width of a frame is its share of the time, and what it called stands on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmfactory.run.trace import Node

WIDTH, LINE, LEAST = 1200, 17, 0.0015
"""Pixels of the picture and of a line; frames below that share of the whole are left out of it."""
LETTER = 6.6
"""Pixels, about."""
COLORS = {"aten::": "#e8a33d", "autograd": "#c9794a", "part:": "#6f9f6f", "llmfactory": "#7fa8c9", "torch": "#b9a3c9"}
OTHER = "#c9c4b8"
FLAME = "flame_0.svg"
"""That of rank 0, in the run folder."""


def stacks(nodes: list[Node]) -> dict[str, int]:
    """Microseconds by stack, outermost frame first, frames apart by `;`."""
    found: dict[tuple[str, ...], float] = {}
    paths: dict[int, tuple[str, ...]] = {}
    for node in nodes:
        above = () if node.above is None else paths[id(node.above)]
        paths[id(node)] = path = (*above, _frame(node.event["name"]))
        found[path] = found.get(path, 0.0) + node.own
    kept = {path: round(time) for path, time in found.items() if round(time) > 0}
    common = _common(list(kept))
    return {";".join(path[common:]): time for path, time in kept.items()}


def _common(paths: list[tuple[str, ...]]) -> int:
    """Frames that all stacks begin with and none consists of: the way from the command to the loop says nothing."""
    most = min(map(len, paths), default=1) - 1
    return next((depth for depth in range(most) if len({path[depth] for path in paths}) > 1), most)


def _frame(name: str) -> str:
    """Without what separates frames, folders before a package, and addresses."""
    name = re.sub(r"^.*site-packages/", "", name)
    name = re.sub(r"^.*/(llmfactory/)", r"\1", name)
    name = re.sub(r" of .* at 0x[0-9a-f]+", "", name)
    return name.replace(";", ",").replace("\n", " ")


def collapsed(found: dict[str, int]) -> str:
    """One stack a line, as flamegraph.pl, speedscope and others read it."""
    return "".join(f"{path} {time}\n" for path, time in sorted(found.items()))


@dataclass(slots=True)
class Frame:
    name: str
    time: int = 0
    below: dict[str, Frame] = field(default_factory=dict)


def tree(found: dict[str, int]) -> Frame:
    root = Frame("all")
    for path, time in found.items():
        here = root
        here.time += time
        for name in path.split(";"):
            here = here.below.setdefault(name, Frame(name))
            here.time += time
    return root


def picture(found: dict[str, int]) -> str:
    """A self-contained SVG; the pointer on a frame shows its name, time and share."""
    root = tree(found)
    if not root.time:
        return ""
    boxes = list(_boxes(root, 0, 0.0, root.time))
    depth = 1 + max(level for level, _, _, _ in boxes)
    height = depth * LINE + 4
    drawn = []
    for level, left, share, frame in boxes:
        x, width, y = left * WIDTH, max(0.5, share * WIDTH - 0.4), height - (level + 1) * LINE
        fits = int(width / LETTER)
        text = frame.name if len(frame.name) <= fits else frame.name[: fits - 1] + "…" if fits > 4 else ""
        told = escape(f"{frame.name}: {frame.time / 1e3:,.3f} ms, {share:.1%}")
        color = next((color for start, color in COLORS.items() if frame.name.startswith(start)), OTHER)
        drawn.append(
            f'<g><title>{told}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{LINE - 1}" fill="{color}" rx="1"/>'
            f'<text x="{x + 3:.1f}" y="{y + LINE - 5}">{escape(text)}</text></g>'
        )
    style = "font: 11px ui-monospace, monospace; fill: #222"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'style="{style}">{"".join(drawn)}</svg>'
    )


def _boxes(frame: Frame, level: int, left: float, whole: int) -> Iterator[tuple[int, float, float, Frame]]:
    share = frame.time / whole
    if share < LEAST:
        return
    yield level, left, share, frame
    for below in sorted(frame.below.values(), key=lambda one: -one.time):
        yield from _boxes(below, level + 1, left, whole)
        left += below.time / whole
