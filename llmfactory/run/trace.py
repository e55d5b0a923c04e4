"""What a trace of torch's profiler says: time by part of the model, memory at its peak, stacks.

A trace is read from the file that is kept for Perfetto, so that everything that is told can be looked up there. In it, operations of
one thread are nested by time. A forward operation belongs to the part whose range it runs in (`watching_parts`), a backward one to the
part of the forward operation that made its node, to which the profiler draws an arrow; recomputed ones run in ranges again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from llmfactory.stage.part_flops import part_of

MARK = "part:"
"""How the names of ranges of parts begin."""
NODE, ACCUMULATE = "autograd::engine::evaluate_function", "AccumulateGrad"
COMMUNICATION = ("nccl", "ncclDevKernel")
LAUNCHES = "c10d::"
"""How operations that begin to communicate are called."""
BESIDE = "gloo:"
"""How ranges are called that begin where communication begins and last until it is done, while their thread does other things."""
COMPUTES = ("forward", "backward")
ROUNDING = 0.01
"""Microseconds."""

Key = tuple[str, str]
"""(phase, part)."""


@contextmanager
def watching_parts(root: nn.Module) -> Iterator[None]:
    """Within it, forward passes of a model's parts are ranges of the profiler. Nothing that is computed changes."""
    handles, open_ranges = [], []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            one: AbstractContextManager[Any] = record_function(name)
            one.__enter__()
            open_ranges.append(one)

        return hook

    def leave(module: nn.Module, arguments: Any, outputs: Any) -> None:
        if open_ranges:
            open_ranges.pop().__exit__(None, None, None)

    for path, module in root.named_modules():
        part = "head" if module is root else part_of(module)
        if part is not None:
            handles.append(module.register_forward_pre_hook(enter(f"{MARK}{part} {path}")))
            # Recomputation leaves a block by an exception, as soon as it has what it needs.
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(slots=True)
class Node:
    """An operation or a range, with what runs inside it."""

    event: dict[str, Any]
    above: Node | None
    phase: str = "framework"
    part: str | None = None
    inside: float = 0.0
    """Microseconds of what it holds."""

    @property
    def own(self) -> float:
        return max(0.0, float(self.event["dur"]) - self.inside)


@dataclass(slots=True)
class Trace:
    """One traced step of one process."""

    nodes: list[Node] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)

    def seconds(self) -> dict[Key, float]:
        """Own time of everything, by phase and part: of the host, and where there are kernels, of the GPU."""
        found: dict[Key, float] = {}
        if self.kernels:
            launched = {node.event["args"].get("External id"): node for node in self.nodes if "args" in node.event}
            for kernel in self.kernels:
                node = launched.get(kernel.get("args", {}).get("External id"))
                key = ("framework", "rest") if node is None else (node.phase, node.part or "rest")
                if not kernel["name"].startswith(COMMUNICATION):
                    found[key] = found.get(key, 0.0) + kernel["dur"] / 1e6
            return found
        for node in self.nodes:
            key = node.phase, node.part or "rest"
            found[key] = found.get(key, 0.0) + node.own / 1e6
        return found

    def exposed(self) -> float:
        """Seconds in which the GPU did nothing but communicate."""
        busy = [(k["ts"], k["ts"] + k["dur"]) for k in self.kernels if not k["name"].startswith(COMMUNICATION)]
        both = [(k["ts"], k["ts"] + k["dur"]) for k in self.kernels]
        return (_covered(both) - _covered(busy)) / 1e6


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def read_trace(path: Path) -> Trace:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    trace = Trace()
    sources: dict[Any, tuple[Any, float]] = {}
    arrows: dict[tuple[Any, float], Any] = {}
    threads: dict[Any, list[dict[str, Any]]] = {}
    for event in events:
        kind = event.get("cat")
        if event.get("name") == "[memory]":
            trace.memory.append(event)
        elif kind == "kernel" or kind in ("gpu_memcpy", "gpu_memset"):
            trace.kernels.append(event)
        elif kind in ("cpu_op", "user_annotation", "python_function") and "dur" in event and not event["name"].startswith(BESIDE):
            threads.setdefault(event["tid"], []).append(event)
        elif kind == "fwdbwd":
            place = event["tid"], event["ts"]
            if event["ph"] == "s":
                sources[event["id"]] = place
            else:
                arrows[place] = event["id"]
    trace.memory.sort(key=lambda event: event["ts"])
    for of_thread in sorted(threads.values(), key=lambda one: min(event["ts"] for event in one)):
        trace.nodes += nested(of_thread)
    _name_parts(trace.nodes, {place: sources[number] for place, number in arrows.items() if number in sources})
    return trace


def _end(node: Node) -> float:
    return float(node.event["ts"] + node.event["dur"])


def nested(events: list[dict[str, Any]]) -> list[Node]:
    """Events of a thread, each below the one that it runs in, in the order of their beginnings. A range that outlasts the call that
    opened it stands beside that call."""
    nodes: list[Node] = []
    stack: list[Node] = []
    for event in sorted(events, key=lambda one: (one["ts"], -one["dur"])):
        end = event["ts"] + event["dur"] - ROUNDING
        while stack and (event["ts"] >= _end(stack[-1]) or end > _end(stack[-1])):
            stack.pop()
        node = Node(event, stack[-1] if stack else None)
        if stack:
            stack[-1].inside += event["dur"]
        stack.append(node)
        nodes.append(node)
    return nodes


def _name_parts(nodes: list[Node], arrows: dict[tuple[Any, float], tuple[Any, float]]) -> None:
    """Phase and part of each."""
    made: dict[tuple[Any, float], Node] = {}
    for node in nodes:  # of several that begin at once, the outermost: they stand in the same ranges
        made.setdefault((node.event["tid"], node.event["ts"]), node)
    phases = ("data", "forward", "backward", "optimizer", "framework")
    before: str | None = None
    for number, node in enumerate(nodes):
        name, above = node.event["name"], node.above
        node.phase = name if name in phases else above.phase if above is not None else "framework"
        if name.startswith(MARK):
            node.part = name[len(MARK) :].split(" ")[0]
            continue
        communicates = name == "communication" or name.startswith(LAUNCHES)
        node.part = "communication" if communicates else above.part if above is not None else None
        if not name.startswith(NODE):
            continue
        if above is None:  # on a GPU the backward pass has a thread of its own
            node.phase = "backward"
        below = nodes[number + 1] if number + 1 < len(nodes) else node
        source = made.get(arrows.get((below.event["tid"], below.event["ts"]), (None, 0.0)))
        if ACCUMULATE in name:
            node.part = before
        elif source is not None:
            node.part = source.part
        before = node.part


@dataclass(frozen=True, slots=True)
class Peak:
    """The moment of a step at which most memory is used, in bytes beyond what was there when it began."""

    phase: str
    gradients: int
    activations: int
    """Made in a forward pass and kept for the backward one."""
    rest: int
    """Temporaries, and what a phase makes for itself."""


def peak_of(trace: Trace, gradients: set[int], device: torch.device) -> Peak:
    """`gradients`: addresses of their storages at the end of the backward pass."""
    kind = 1 if device.type == "cuda" else 0
    mine = [event["args"] for event in trace.memory if event["args"].get("Device Type") == kind]
    times = [event["ts"] for event in trace.memory if event["args"].get("Device Type") == kind]
    spans = sorted(
        (n.event["ts"], n.event["ts"] + n.event["dur"], n.phase)
        for n in trace.nodes
        if n.event["name"] == n.phase and n.event.get("cat") == "user_annotation"
    )
    now = top = 0
    at = -1
    for number, one in enumerate(mine):
        now += one["Bytes"]
        if now > top:
            top, at = now, number
    if at < 0:
        return Peak("framework", 0, 0, 0)
    live: dict[int, tuple[int, float]] = {}
    for one, moment in zip(mine[: at + 1], times[: at + 1], strict=True):
        if one["Bytes"] > 0:
            live[one["Addr"]] = one["Bytes"], moment
        else:
            live.pop(one["Addr"], None)
    gone: dict[int, float] = {}
    for one, moment in zip(mine[at + 1 :], times[at + 1 :], strict=True):
        if one["Bytes"] < 0:
            gone.setdefault(one["Addr"], moment)
    sums = dict.fromkeys(("gradients", "activations", "rest"), 0)
    for address, (size, born) in live.items():
        died = gone.get(address)
        if (died is None and address in gradients) or (
            address in gradients and _phase(spans, died) in ("optimizer", "framework")
        ):
            sums["gradients"] += size
        elif _phase(spans, born) == "forward" and (died is None or _phase(spans, died) != "forward"):
            sums["activations"] += size
        else:
            sums["rest"] += size
    return Peak(_phase(spans, times[at]), **sums)


def _phase(spans: Sequence[tuple[float, float, str]], moment: float | None) -> str:
    if moment is None:
        return "framework"
    return next((phase for start, stop, phase in spans if start <= moment <= stop), "framework")
