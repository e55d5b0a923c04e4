"""A time limit for code that runs in this process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class OutOfTime(BaseException):
    """Raised in the midst of what takes too long; no `except Exception` in it stops this."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime when the block takes longer.

    A timer's signal interrupts Python's own code and its regular expressions; code of other languages is interrupted when it
    returns. Signals reach the main thread alone, which is where jobs run: in another one the block ends when it ends, and
    OutOfTime is raised then.
    """
    begin = time.monotonic()
    if threading.current_thread() is not threading.main_thread():
        yield
    else:
        with _alarm(seconds):
            yield
    if time.monotonic() - begin > seconds:
        raise OutOfTime


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def interrupt(number: int, frame: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, interrupt)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds)
    begin = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # whoever had set a timer gets what is left of it
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, left - (time.monotonic() - begin)), every)
