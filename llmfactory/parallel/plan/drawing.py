"""A layout as a picture: machines, their devices, which layers and pieces each has, which groups talk and over what.

Plain SVG, made without any library. Of many machines the first ones are drawn, and the others counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from llmfactory.parallel.plan.arrangement import Arrangement
from llmfactory.parallel.plan.forecast import dealt_to
from llmfactory.parallel.plan.pieces import Bundle, Where, Work

WIDTH, HEIGHT, GAP, MARGIN = 172, 98, 10, 16
"""Of a device's box, between boxes, around a machine: pixels."""
MACHINES = 8
"""Machines that are drawn."""
ACROSS = 8
"""Devices side by side."""
STAGES = ("#dbe9f8", "#fde5d4", "#ddefdc", "#eadff3", "#f6efcf", "#d8f0ee", "#f8dce4", "#e6e6e6")
"""Colours of pipeline stages, in turn."""
AXES = {"tp": "tensor", "cp": "context", "ep": "experts", "shards": "sharding", "copies": "copies", "pp": "pipeline"}
"""Groups, and what they are called."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of a process on the axes of a layout."""

    rank: int
    numbers: dict[str, int]


def place(rank: int, at: Arrangement) -> Place:
    """Number of a process along each axis."""
    groups = {axis: at.group(axis) for axis in AXES}
    return Place(rank, {axis: rank // group.stride % group.size for axis, group in groups.items()})


def draw(at: Arrangement, work: Work, devices_per_node: int) -> str:
    """The picture as an SVG element."""
    devices = min(devices_per_node, at.world)
    machines = -(-at.world // devices)
    shown = min(machines, MACHINES)
    across = min(devices, ACROSS)
    deep = -(-devices // across)
    wide = across * (WIDTH + GAP) - GAP + 2 * MARGIN
    tall = deep * (HEIGHT + GAP) - GAP + 2 * MARGIN + 18
    holds = [describe(bundles) for bundles in dealt_to(at, work)]
    parts = []
    for machine in range(shown):
        top = machine * (tall + GAP)
        parts.append(_box(0, top, wide, tall, "#ffffff", "#999999"))
        parts.append(_text(MARGIN, top + 18, f"machine {machine}", 12, bold=True))
        for number in range(devices):
            rank = machine * devices + number
            if rank < at.world:
                x = MARGIN + number % across * (WIDTH + GAP)
                y = top + 24 + number // across * (HEIGHT + GAP)
                parts.append(_device(x, y, place(rank, at), at, holds))
    height = shown * (tall + GAP)
    if machines > shown:
        parts.append(_text(MARGIN, height + 14, f"... and {machines - shown} machines more, laid out alike", 12))
        height += 24
    legend, height = _legend(at, devices_per_node, height + 12)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {max(wide, 720) + 4} {height + 4}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="layout of {at.world} processes">'
        + "".join([*parts, *legend])
        + "</svg>"
    )


def describe(bundles: Sequence[Bundle]) -> str:
    """The pieces of a process in a few words."""
    layers = sum(bundle.uses for bundle in bundles if bundle.piece.where is Where.layer)
    others = [bundle.piece.name.rpartition(".")[2] for bundle in bundles if bundle.piece.where is not Where.layer]
    return ", ".join([f"{layers} layer{'s' if layers != 1 else ''}", *dict.fromkeys(others)])


def _device(x: int, y: int, where: Place, at: Arrangement, holds: Sequence[str]) -> str:
    stage = where.numbers["pp"]
    lines = [
        _box(x, y, WIDTH, HEIGHT, STAGES[stage % len(STAGES)], "#777777"),
        _text(x + 8, y + 17, f"rank {where.rank}", 12, True),
    ]
    stages = at.stages_of(stage)
    label = f"stage {', '.join(map(str, stages))}: " if at.pp > 1 else ""
    lines.append(_text(x + 8, y + 34, _short(label + holds[stage], 32), 10))
    below = 50
    for axis in AXES:
        group = at.group(axis)
        if group.size > 1 and axis != "pp":
            what = {"copies": "copy", "shards": "shard"}.get(axis, f"{AXES[axis]} piece")
            if axis == "ep":
                what = "experts"
            lines.append(_text(x + 8, y + below, f"{what} {where.numbers[axis] + 1} of {group.size}", 10))
            below += 13
    return "".join(lines)


def _legend(at: Arrangement, devices_per_node: int, top: int) -> tuple[list[str], int]:
    """Which groups talk: of each axis the first group, and over what."""
    parts = []
    for axis, called in AXES.items():
        group = at.group(axis)
        if group.size == 1:
            continue
        inside = group.per_node(devices_per_node)
        over = "the links of a machine" if inside == group.size else f"the network, {inside} a machine"
        ranks = group.ranks(0)
        listed = ", ".join(map(str, ranks[:8])) + (f", ... {ranks[-1]}" if len(ranks) > 8 else "")
        parts.append(_text(0, top + 12, f"{called}: groups of {group.size}, over {over}; the first one: ranks {listed}", 12))
        top += 18
    if not parts:
        parts.append(_text(0, top + 12, "one process: nobody to talk to", 12))
        top += 18
    return parts, top


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _box(x: int, y: int, width: int, height: int, fill: str, line: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" stroke="{line}"/>'


def _text(x: int, y: int, text: str, size: int, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="#222222"{weight}>{escape(text)}</text>'
