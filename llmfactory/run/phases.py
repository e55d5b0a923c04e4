"""Where the time of a training's steps goes, phase by phase, and which part of it is waiting for other processes.

The strategy says when a phase begins (`MeshStrategy.begins`); each lasts until the next one does, so that the phases of a step fill
it without a gap. Time that is spent blocked in `torch.distributed` is taken out of the phase in which it falls, and is the
communication's. On a GPU the marks are events on its stream: nothing waits, and what the host does meanwhile costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as funcol
from torch.profiler import record_function

PHASES = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "communication": "communication",
    "waiting": "waiting for other processes",
    "framework": "framework",
}
"""Key and shown name. `waiting` is told apart from communication once all processes are compared (`apart`)."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step of one process, in seconds."""

    total: float
    """From the end of the step before to its own end, by a clock of its own."""
    phases: dict[str, float]
    waits: tuple[float, ...]
    """Each time that it was blocked, in order; `phases["communication"]` is their sum."""

    def gap(self) -> float:
        """What the phases leave unexplained, as a share of the step."""
        return abs(self.total - sum(self.phases.values())) / self.total if self.total else 0.0


@dataclass(slots=True)
class PhaseClock:
    """Of one process. `lap` ends a step."""

    device: torch.device
    named: bool = False
    """Phases are also ranges of the profiler."""
    _marks: list[tuple[str, Any]] = field(default_factory=list)
    _waits: list[tuple[str, float]] = field(default_factory=list)
    _began: float = 0.0
    _range: AbstractContextManager[Any] | None = None
    _stands: bool = False
    """A blocking call is being timed; those that it makes itself are part of it."""

    def begin(self, phase: str) -> None:
        self._marks.append((phase, self._now()))
        if self.named or self._range is not None:
            self._name(phase)

    def _name(self, phase: str | None) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
        one: AbstractContextManager[Any] | None = record_function(phase) if self.named and phase is not None else None
        self._range = one
        if one is not None:
            one.__enter__()

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def start(self) -> None:
        """The first step that is timed begins."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._marks, self._waits = [], []
        self.begin("framework")
        self._began = time.monotonic()

    def close(self) -> None:
        """No phase is open for the profiler any more."""
        self.named = False
        self._name(None)

    def lap(self) -> StepTime:
        """The step that ends now; the next one begins. Waits for the device."""
        self.begin("framework")
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.monotonic()
        total, self._began = now - self._began, now
        phases = dict.fromkeys((key for key in PHASES if key != "waiting"), 0.0)
        for (phase, start), (_, stop) in zip(self._marks, self._marks[1:], strict=False):
            phases[phase] += self._between(start, stop)
        for phase, blocked in self._waits:
            phases[phase] -= blocked
            phases["communication"] += blocked
        waits = tuple(blocked for _, blocked in self._waits)
        self._marks, self._waits = self._marks[-1:], []
        return StepTime(total, phases, waits)

    def _between(self, start: Any, stop: Any) -> float:
        return float(start.elapsed_time(stop)) / 1e3 if self.device.type == "cuda" else stop - start

    def blocked(self, seconds: float) -> None:
        """So long the process stood still for others."""
        if self.device.type != "cuda" and self._marks:  # a GPU's stream waits, not the host
            self._waits.append((self._marks[-1][0], seconds))

    def fetching(self, batches: Any) -> Iterator[Any]:
        """The same batches; the time in which they are made is that of data."""
        source, end = iter(batches), object()
        while True:
            before = self._marks[-1][0] if self._marks else "framework"
            self.begin("data")
            batch = next(source, end)
            self.begin(before)
            if batch is end:
                return
            yield batch

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, blocking calls of `torch.distributed` are timed. All of them end in one of two functions, whoever made them
        (FSDP2, DTensor, our own); torch has no hook there, so they are replaced for as long."""
        work: Any = dist.Work
        patches = [(work, "wait", work.wait), (funcol, "wait_tensor", funcol.wait_tensor)]
        for owner, name, function in patches:
            setattr(owner, name, self._timed(function))
        try:
            yield
        finally:
            for owner, name, function in patches:
                setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            if self._stands:
                return function(*arguments, **options)
            self._stands, start = True, time.perf_counter()
            try:
                with record_function("communication") if self.named else nullcontext():
                    return function(*arguments, **options)
            finally:
                self._stands = False
                self.blocked(time.perf_counter() - start)

        return timed


def apart(steps: list[StepTime], alike: bool = True) -> list[dict[str, float]]:
    """Phases of the same step on all processes, with waiting apart from communication: an operation takes as long as it takes the
    process that comes to it last, which waits for nobody; what others spend in it beyond that, they wait. Not `alike`: processes make different
    operations (the stages of a pipeline), perhaps as many of them; they are not compared, and all of it is communication."""
    counts = {len(step.waits) for step in steps}
    phases = [{key: step.phases.get(key, 0.0) for key in PHASES} for step in steps]
    if alike and len(counts) == 1:
        shortest = [min(blocked) for blocked in zip(*(step.waits for step in steps), strict=True)]
        for mine, step in zip(phases, steps, strict=True):
            mine["waiting"] = sum(step.waits) - sum(shortest)
            mine["communication"] -= mine["waiting"]
    return phases
