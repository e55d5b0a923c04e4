"""What a running job shows: a bar on a terminal, a line a log row elsewhere, or nothing.

The bar goes to the terminal only; the log of the run gets the lines that it stands for.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TextIO, cast

from llmfactory.run.log import log_only, screen, screen_through

if TYPE_CHECKING:
    from rich.progress import TaskID


class Display(ABC):
    """Receives news of a job; only the process of rank 0 has one that shows them."""

    @abstractmethod
    def preparing(self, what: str, done: int, total: int | None) -> None:
        """Progress of one step of the preparation of data; None: how much there will be is not known."""

    @abstractmethod
    def start(self, total_steps: int, start_step: int) -> None:
        """Training begins after `start_step` steps already done."""

    @abstractmethod
    def update(self, step: int, metrics: dict[str, float]) -> None:
        """So many optimizer steps are done."""

    @abstractmethod
    def note(self, text: str) -> None:
        """A line that stays."""

    @abstractmethod
    def stop(self) -> None:
        """Preparation or training is over. May be called twice."""


class Silent(Display):
    """trainer.progress=false, and every process but rank 0. Notes are news, not progress: rank 0 still prints them."""

    def __init__(self, notes: bool) -> None:
        self.notes = notes

    def preparing(self, what: str, done: int, total: int | None) -> None:
        pass

    def start(self, total_steps: int, start_step: int) -> None:
        pass

    def update(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def note(self, text: str) -> None:
        if self.notes:
            print(text, flush=True)

    def stop(self) -> None:
        pass


class Lines(Display):
    """A plain line for each log row: files, pipes, CI."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.phases: set[str] = set()

    def preparing(self, what: str, done: int, total: int | None) -> None:
        if what not in self.phases:
            self.phases.add(what)
            print(f"preparing data: {what}", flush=True)

    def start(self, total_steps: int, start_step: int) -> None:
        self.clock.start(total_steps, start_step)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        print(self.clock.line(step, metrics), flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)

    def stop(self) -> None:
        pass


class Bar(Display):
    """A live bar at the bottom of a terminal; what others print scrolls by above it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stack = ExitStack()
        self.phase: str | None = None

    def _open(self, *columns: str) -> None:
        from rich.console import Console
        from rich.file_proxy import FileProxy
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self.stop()
        console = Console(file=screen())
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            *(TextColumn(column) for column in columns),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self.stack.enter_context(screen_through(lambda stream: cast(TextIO, FileProxy(console, stream))))
        self.stack.enter_context(self.progress)

    def preparing(self, what: str, done: int, total: int | None) -> None:
        if self.phase != what:
            self._open()
            self.phase = what
            self.task: TaskID = self.progress.add_task(f"preparing data: {what}", total=total)
            log_only(f"preparing data: {what}")
        self.progress.update(self.task, completed=done, total=total)

    def start(self, total_steps: int, start_step: int) -> None:
        self.clock.start(total_steps, start_step)
        self._open("loss [bold]{task.fields[loss]}[/]", "{task.fields[speed]} tokens/s")
        self.task = self.progress.add_task("training", total=total_steps, completed=start_step, loss="", speed="")

    def update(self, step: int, metrics: dict[str, float]) -> None:
        log_only(self.clock.line(step, metrics))
        shown: dict[str, Any] = {}
        if "loss" in metrics:
            shown["loss"] = f"{metrics['loss']:.4f}"
        if "tokens_per_second" in metrics:
            shown["speed"] = f"{metrics['tokens_per_second']:,.0f}"
        self.progress.update(self.task, completed=step, **shown)

    def note(self, text: str) -> None:
        print(text, flush=True)

    def stop(self) -> None:
        self.phase = None
        self.stack.close()


class Clock:
    """Writes the line of a log row, with the time left at the mean speed so far."""

    def start(self, total_steps: int, start_step: int) -> None:
        self.total, self.first, self.began = total_steps, start_step, time.perf_counter()

    def line(self, step: int, metrics: dict[str, float]) -> str:
        parts = [f"step {step}/{self.total}", *(f"{name} {number(value)}" for name, value in metrics.items())]
        done = step - self.first
        if done > 0 and step < self.total:
            parts.append(f"left {duration((time.perf_counter() - self.began) / done * (self.total - step))}")
        return "  ".join(parts)


def number(value: float) -> str:
    """Short: thousands with commas, the rest with four or five significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def make_display(progress: bool, rank: int) -> Display:
    if not progress or rank != 0:
        return Silent(notes=rank == 0)
    return Bar() if sys.stdout.isatty() else Lines()
