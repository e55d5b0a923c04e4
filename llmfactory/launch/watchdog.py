"""A thread in each process of a job that ends it when another process has failed, or when all wait for one that does not come.

Without it a process that waits inside a collective operation learns nothing before the time-out, then says that a connection
was lost, and nobody says where the missing process stood. The threads meet in the job's store, over connections of their own:

- a process that fails leaves its error there; the others have a while to end by themselves, then they are ended;
- a process that has died without a word is missed by its neighbour on the same machine, who leaves an error for it;
- a process that has waited for nearly `timeout_s` calls all to say where they stand, and fails with that picture.

A process waits if its main thread uses no CPU time and stands in one and the same call of torch.distributed, or if the last
collective that it began (torch's flight recorder; GPUs work on while the main thread turns in circles) has not ended.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.launch.failure import Failure, from_text, of_error
from llmfactory.launch.standing import (
    from_text as standing_from_text,
)
from llmfactory.launch.standing import (
    main_frames,
    main_seconds,
    pending,
    picture,
    recorded,
    standing,
    waiting_call,
)

GRACE_S = 10.0
"""Seconds that a process has to end by itself after another one failed."""
ANSWER_S = 5.0
"""Seconds within which a living process says where it stands."""
LOOK_S = 15.0
"""Seconds between looks into the flight recorder, which take milliseconds."""
IDLE = 0.001
"""Share of CPU time below which a main thread counts as waiting."""


class Peers:
    """What the processes of a job tell each other through its store."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size

    def clone(self) -> Peers:
        """The same over a connection of its own: a client of a store serves one thread."""
        return Peers(self.store.clone(), self.rank, self.size)

    def tell(self, failure: Failure) -> None:
        """The first one counts."""
        self.store.compare_set("failure", "", failure.as_text())

    def failure(self, wait_s: float = 0.0) -> Failure | None:
        """The first failure of any process; waits for one up to so many seconds."""
        end = time.monotonic() + wait_s
        while not self.store.check(["failure"]):
            if time.monotonic() >= end:
                return None
            time.sleep(0.1)
        return from_text(self.store.get("failure").decode())


def join_peers(timeout_s: float) -> Peers:
    """By the environment variables that torch's launchers set."""
    import torch.distributed as dist

    store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))  # type: ignore[attr-defined]
    return Peers(store, rank, size)


def next_on_machine(rank: int) -> int:
    """The next rank on this machine, in a ring."""
    local, size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return rank - local + (local + 1) % size


class Watchdog(threading.Thread):
    """Watches this process's main thread, and the others' fate.

    Args:
        timeout_s: as `parallel.timeout_s`; it strikes a little earlier, so that the backends' own time-out comes after it.
        save: keeps a failure where the agent looks for it.
        dump: file for the flight recorder's data, for torch's own analyzer; None: not kept.
    """

    def __init__(
        self, peers: Peers, timeout_s: float, save: Callable[[Failure], None], log: Path | None = None, dump: Path | None = None
    ) -> None:
        super().__init__(daemon=True, name="watchdog")
        self.peers, self.timeout_s, self.save, self.log, self.dump = peers, timeout_s, save, log, dump
        self.patience_s = timeout_s - min(0.2 * timeout_s, 30.0)
        self.period_s = min(1.0, timeout_s / 20)
        self.ended = threading.Event()
        self.neighbour = next_on_machine(peers.rank)
        self._stack: tuple[Any, ...] = ()
        self._since = self._looked = time.monotonic()
        self._seconds = 0.0

    def stop(self, well: bool) -> None:
        """The main thread's work is done. Rank 0, whose end may be the store's, stays until the others are done as well."""
        self.ended.set()
        end, missing = time.monotonic() + self.timeout_s, {f"ended/{rank}" for rank in range(self.peers.size)}
        with suppress(RuntimeError):  # the store may be gone
            self.peers.store.set(f"ended/{self.peers.rank}", "")
            while well and self.peers.rank == 0 and missing and time.monotonic() < end and self.peers.failure() is None:
                missing = {key for key in missing if not self.peers.store.check([key])}
                time.sleep(0.02)
        self.join(2 * self.period_s)

    def run(self) -> None:
        try:
            peers = self.peers.clone()
            peers.store.set(f"process/{peers.rank}", str(os.getpid()))
            while not self.ended.wait(self.period_s):
                if (failure := peers.failure()) is not None:
                    return self._end_after(failure)
                if peers.store.check(["standings"]):
                    return self._answer(peers)
                if self.is_stuck():
                    return self._report(peers)
                if self._neighbour_died(peers):
                    died = f"the process of rank {self.neighbour} ended without a word (killed? out of memory?)"
                    peers.tell(dataclasses.replace(self._failed(died), rank=self.neighbour, follows=True))
        except (RuntimeError, ConnectionError, TimeoutError):  # the store is gone, and with it rank 0, which held it
            if not self.ended.wait(GRACE_S):
                gone = self._failed("the process of rank 0, where all others met, is gone")
                self._end(dataclasses.replace(gone, follows=True))
        return None

    def is_stuck(self) -> bool:
        """Whether the main thread has waited too long in one operation."""
        now, seconds, frames = time.monotonic(), main_seconds(), main_frames()
        stack = tuple((frame.f_code, frame.f_lasti) for frame in frames)
        idle = seconds - self._seconds <= max(0.02, IDLE * (now - self._since))
        if stack != self._stack or not idle or waiting_call(frames) is None:
            self._stack, self._since, self._seconds = stack, now, seconds
        if now - self._since >= self.patience_s:
            return True
        if now - self._looked < min(self.patience_s / 8, LOOK_S):  # reading the recorder takes time
            return False
        self._looked = now
        entry = pending(recorded())
        return entry is not None and time.time() - entry["time_created_ns"] / 1e9 >= self.patience_s

    def _neighbour_died(self, peers: Peers) -> bool:
        """Whether the next process on this machine is gone, and had not finished."""
        key, ended = f"process/{self.neighbour}", f"ended/{self.neighbour}"
        if self.neighbour == peers.rank or not peers.store.check([key]):
            return False
        try:
            os.kill(int(peers.store.get(key)), 0)
        except ProcessLookupError:
            return not peers.store.check([ended])
        except PermissionError:
            return False
        return False

    def _report(self, peers: Peers) -> None:
        """Call all, wait for their answers, fail with them."""
        peers.store.set("standings", "")
        own = standing(peers.rank)
        self._say(peers, own.as_text())
        end, answers = time.monotonic() + ANSWER_S, {peers.rank: own}
        while len(answers) < peers.size and time.monotonic() < end and not self.ended.is_set():
            for rank in set(range(peers.size)) - set(answers):
                if peers.store.check([f"standing/{rank}"]):
                    answers[rank] = standing_from_text(peers.store.get(f"standing/{rank}").decode())
            time.sleep(0.05)
        if self.ended.is_set():  # it went on after all
            return
        waited = f"processes wait for each other since {self.patience_s:g} s (parallel.timeout_s={self.timeout_s:g}):"
        failure = self._failed(f"{waited}\n{picture([answers[rank] for rank in sorted(answers)], peers.size)}")
        peers.tell(failure)
        self._end(peers.failure() or failure)

    def _answer(self, peers: Peers) -> None:
        self._say(peers, standing(peers.rank).as_text())
        failure = peers.failure(ANSWER_S + GRACE_S)
        if failure is not None:
            self._end_after(failure)

    def _say(self, peers: Peers, text: str) -> None:
        peers.store.set(f"standing/{peers.rank}", text)
        if self.dump is not None:
            from torch._C._distributed_c10d import _dump_fr_trace  # type: ignore[attr-defined]

            self.dump.write_bytes(_dump_fr_trace())

    def _end_after(self, failure: Failure) -> None:
        if not self.ended.wait(GRACE_S):
            self._end(failure)

    def _failed(self, message: str) -> Failure:
        try:
            raise UserError(message)
        except UserError as error:
            return of_error(error, self.peers.rank, self.log)

    def _end(self, failure: Failure) -> None:
        """End this process: its main thread cannot be reached."""
        self.save(failure)
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"ended by the watchdog: {failure.error()}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
