"""Where a process stands: in which collective operation, or else in which line.

The names of collectives come from torch's flight recorder, which keeps the last ones of every backend with their process
group, number and sizes; the line, and point-to-point waits, which gloo does not record, from the main thread's stack.
"""

from __future__ import annotations

import json
import linecache
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

WAITS = re.compile(r"\b(wait|recv|send|barrier|synchronize)\(")
"""Calls into C++ that wait for another process; they leave no frame of their own."""
NEAR = 4
"""Innermost frames that are looked at for torch.distributed."""
PACKAGE = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True, slots=True)
class Standing:
    """One process at one moment."""

    rank: int
    waits: str | None
    """The operation that it waits in; None: it is busy with something else."""
    place: str
    """The innermost line of ours, and its function."""

    def __str__(self) -> str:
        return f"waits in {self.waits}, {self.place}" if self.waits else f"does not wait for anybody: it is in {self.place}"

    def as_text(self) -> str:
        return json.dumps(asdict(self))


def from_text(text: str) -> Standing:
    return Standing(**json.loads(text))


def main_frames() -> list[FrameType]:
    """The main thread's stack, innermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def main_seconds() -> float:
    """CPU time that the main thread has used: it stands still in a wait."""
    return time.clock_gettime(time.pthread_getcpuclockid(threading.main_thread().ident or 0))


def waiting_call(frames: Sequence[FrameType]) -> str | None:
    """The communication that a stack waits in; None: something else."""
    for frame in frames[:NEAR]:
        code = frame.f_code
        if "torch/distributed/" in code.co_filename and code.co_name not in ("wrapper", "inner"):
            return code.co_name
    if frames and (found := WAITS.search(linecache.getline(frames[0].f_code.co_filename, frames[0].f_lineno))):
        return found[1]
    return None


def place_of(frames: Sequence[FrameType]) -> str:
    """`file:line (function)` of the innermost frame of this package, or else of whoever called torch."""
    files = [frame.f_code.co_filename for frame in frames]
    ours = [frame for frame, file in zip(frames, files, strict=True) if file.startswith(PACKAGE) and "/launch/" not in file]
    others = [frame for frame, file in zip(frames, files, strict=True) if "/torch/" not in file]
    frame = next(iter([*ours, *others, *frames]))
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"


def recorded() -> list[dict[str, Any]]:
    """What the flight recorder holds, oldest first: collectives that have ended are `retired`."""
    from torch._C._distributed_c10d import _dump_fr_trace_json  # type: ignore[attr-defined]

    return list(json.loads(_dump_fr_trace_json(True, False)).get("entries", []))


def pending(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The oldest collective that has not ended, if the process has begun none since: one that goes on is not stuck."""
    if not entries or entries[-1]["retired"] or entries[-1]["state"] == "completed":
        return None
    alive = [entry for entry in entries if not entry["retired"] and entry["state"] != "completed"]
    return alive[0]


def name_of(entry: dict[str, Any]) -> str:
    """A recorded collective in words."""
    operation = str(entry["profiling_name"]).split(":")[-1]
    sizes = ", ".join(f"{kind.lower()} {size}" for kind, size in zip(entry["input_dtypes"], entry["input_sizes"], strict=False))
    group = entry["process_group"][1] or entry["process_group"][0]
    return f"{operation} (number {entry['collective_seq_id']} of the group {group}{': ' + sizes if sizes else ''})"


def standing(rank: int) -> Standing:
    """Where this process's main thread stands; called from another thread."""
    frames = main_frames()
    entry = pending(recorded())
    call = waiting_call(frames)
    return Standing(rank, name_of(entry) if entry and call else call, place_of(frames))


def picture(standings: Sequence[Standing], size: int) -> str:
    """A line for each place where processes stand, and one for those that gave no answer."""
    places: dict[str, list[int]] = {}
    for one in standings:
        places.setdefault(str(one), []).append(one.rank)
    missing = sorted(set(range(size)) - {one.rank for one in standings})
    lines = [f"  {ranks(found)} {place}" for place, found in places.items()]
    if missing:
        lines.append(f"  {ranks(missing)} gave no sign of life")
    return "\n".join(lines)


def ranks(numbers: Sequence[int]) -> str:
    """`rank 3`, `ranks 0-2, 5`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank{'s' if len(numbers) > 1 else ''} {text}"
