"""Work in numbered tasks that leave a folder each: done in any order, by any number of processes on any number of machines.

A task is taken by a lock on a file, and done when its folder is there, which appears whole, by a rename. So processes that see
the same files need not know of each other: each does what nobody else holds, and waits for the rest. One that is killed gives
its lock back with its life, another takes the task; what was finished stays finished.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.parent import terminate_with_parent
from llmfactory.data.checksum import Damaged
from llmfactory.data.lock import tried
from llmfactory.data.shard import check_about, write_about

WAIT = 0.1
"""Seconds between two looks at tasks that others hold."""
Progress = Callable[[str, int, int], None]
"""Called as progress(what is done, bytes done, of how many)."""


class Interrupted(UserError):
    """Work was ended from outside; what is finished is good, and can be gone on with."""


class Phase(ABC):
    """Tasks of one kind, a dataclass. Can be sent to another process; what is expensive is made at the first task."""

    name: str
    """Of its folder."""
    label: str
    """For the progress bar."""

    def __getstate__(self) -> dict[str, Any]:
        """What it is made of; what it has built stays in the process."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @abstractmethod
    def sizes(self) -> Sequence[int]:
        """About how much work each task is, in bytes."""

    @abstractmethod
    def do(self, number: int, folder: Path) -> None:
        """Fill the folder, which is there and empty, `about.json` last (shard.write_about)."""


@dataclass(kw_only=True)
class Publication(Phase):
    """One task, the last of several phases: their outcome under its own name, whole or not at all."""

    target: Path

    @abstractmethod
    def fill(self, whole: Path) -> None:
        """Write everything into the folder, which is there and empty."""

    def sizes(self) -> Sequence[int]:
        return [1]

    def do(self, number: int, folder: Path) -> None:
        if not self.target.is_dir():  # else we were killed between its rename and the task's
            whole = folder / "whole"
            whole.mkdir()
            self.fill(whole)
            whole.rename(self.target)
        write_about(folder)


class Workers:
    """Processes that do tasks; they start when there is enough to do, and know what they built for a phase."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"), initializer=terminate_with_parent)
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def kill(self) -> None:
        """End at once, whatever they do: somebody else may go on with it."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self.close()


ALONE = 8 << 20
"""Up to so many bytes of work, starting processes costs more than they save."""


def run(phase: Phase, root: Path, workers: Workers, progress: Progress) -> Path:
    """Have all tasks done, by us or by others; the folder in which theirs are, by number.

    Raises whatever a task raises.
    """
    folder = root / phase.name
    folder.mkdir(parents=True, exist_ok=True)
    sizes = phase.sizes()
    total = max(1, sum(sizes))
    waiting = list(range(len(sizes)))
    done = 0

    def finish(numbers: Sequence[int]) -> None:
        nonlocal done, waiting
        gone = set(numbers)
        waiting = [number for number in waiting if number not in gone]
        done += sum(sizes[number] for number in gone)
        progress(phase.label, min(done, total), total)

    progress(phase.label, 0, total)
    finish([number for number in waiting if is_done(folder, number)])
    alone = workers.count == 1 or len(waiting) < 2 or sum(sizes[number] for number in waiting) < ALONE
    while waiting:
        before = len(waiting)
        if alone:
            for number in list(waiting):
                if attempt(phase, folder, number):
                    finish([number])
        else:
            _together(phase, folder, waiting, workers, finish)
        if len(waiting) == before:
            time.sleep(WAIT)
    progress(phase.label, total, total)
    return folder


def _together(
    phase: Phase, folder: Path, waiting: Sequence[int], workers: Workers, finish: Callable[[Sequence[int]], None]
) -> None:
    pool = workers.pool()
    todo = iter(list(waiting))
    running: dict[Future[bool], int] = {}
    try:
        while True:
            while len(running) < workers.count and (number := next(todo, None)) is not None:
                running[pool.submit(_in_worker, phase, folder, number)] = number
            if not running:
                return
            for future in [future for future in running if future.done()] or _first(running):
                if future.result():
                    finish([running[future]])
                del running[future]
    except BrokenProcessPool as error:
        named = ", ".join(f"{phase.name}/{number}" for number in sorted(running.values()))
        workers.close()
        raise Interrupted(
            f"a process that worked on {phase.label} was killed (tasks in hand: {named}), perhaps for want of memory. What is finished "
            "is kept: run it again, with fewer processes if memory was short (data.workers=1)"
        ) from error
    except BaseException:
        workers.kill()
        raise


def _first(running: dict[Future[bool], int]) -> list[Future[bool]]:
    from concurrent.futures import FIRST_COMPLETED, wait

    return list(wait(running, return_when=FIRST_COMPLETED).done)


_built: dict[tuple[Path, str], Phase] = {}


def _in_worker(phase: Phase, folder: Path, number: int) -> bool:
    """A process keeps the phase that it works on, and with it what that phase has built."""
    key = (folder, phase.name)
    if key not in _built:
        _built.clear()
        _built[key] = phase
    return attempt(_built[key], folder, number)


def attempt(phase: Phase, folder: Path, number: int) -> bool:
    """Whether the task is done now: by us, or by somebody else before. False: somebody else has it in hand."""
    lock = folder / f"{number:05d}.lock"
    with tried(lock) as ours:
        if not ours:
            return False
        if not is_done(folder, number):
            place, work = folder / f"{number:05d}", folder / f"{number:05d}.tmp"
            for left in (place, work):  # damaged, or of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            try:
                work.mkdir()
                phase.do(number, work)
                work.rename(place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        lock.unlink(missing_ok=True)  # safe: whoever still waits for this one finds the task done
    return True


def is_done(folder: Path, number: int) -> bool:
    """Whether its folder is there and what it says."""
    place = folder / f"{number:05d}"
    if not place.is_dir():
        return False
    for last in (False, True):  # somebody may just have taken away what is not needed any more (shard.forget_texts)
        try:
            check_about(place)
        except Damaged:
            if last:
                return False
        else:
            return True
    raise AssertionError
