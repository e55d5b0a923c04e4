"""Checkpoints written while training goes on: the tensors are copied to the host's memory, another thread does the rest.

One is under way at most. The processes agree among themselves in a process group of their own, so a folder gets its name only
when all of them have written what they own: the same files, byte for byte, as without the thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread

from llmfactory.parallel.mesh import World


class Background:
    """`failed` is called, in the other thread, when a checkpoint could not be written; `finish` then raises why."""

    def __init__(self, world: World, failed: Callable[[], None]) -> None:
        self.world, self.failed = world, failed
        self._thread: Thread | None = None
        self._written: Path | None = None
        self._error: Exception | None = None

    def start(self, write: Callable[[World], Path]) -> None:
        """Have a checkpoint written; called by every process, after `finish`."""
        assert self._thread is None

        def run() -> None:
            try:
                self._written = write(self.world)
            except Exception as error:
                self._error = error
                self.failed()

        self._thread = Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> Path | None:
        """Wait for the checkpoint that is under way; it, or None if there is none."""
        if self._thread is None:
            return None
        self._thread.join()
        self._thread, written, error = None, self._written, self._error
        self._written = self._error = None
        if error is not None:
            raise error
        return written
