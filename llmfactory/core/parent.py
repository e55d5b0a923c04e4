"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys


def terminate_with_parent() -> None:
    """Linux only: let the system send this process SIGTERM when its parent dies, however it dies."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))
