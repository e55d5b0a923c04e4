"""Programs that nobody trusts, in a process of their own with limits (confined.py), in a folder of their own that is thrown away."""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONFINED = Path(__file__).with_name("confined.py")
GRACE_S = 5.0
"""How much longer than its programs the process that watches over them may take, to begin and to clean up."""
NUMBERS = itertools.count(os.getpid() * 1000)


class SandboxBroken(RuntimeError):
    """The sandbox itself, not what ran in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    cpu_s: float
    """Of each program."""
    wall_s: float
    """Of all of them together."""
    memory_bytes: int
    processes: int
    file_bytes: int
    """Of each file that is written."""


def run(programs: Sequence[str], limits: Limits) -> list[bool]:
    """Of each Python program, whether it ran to its end without an error. Raises SandboxBroken."""
    with tempfile.TemporaryDirectory(prefix="llmfactory-", ignore_cleanup_errors=True) as folder:
        about = {"folder": folder, "number": next(NUMBERS) % 1_000_000_000}
        about |= {name: getattr(limits, name) for name in ("cpu_s", "wall_s", "memory_bytes", "processes", "file_bytes")}
        request = json.dumps({"programs": list(programs), **about}) + "\n"
        with subprocess.Popen(
            [sys.executable, "-I", "-S", str(CONFINED)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            cwd=folder,
            start_new_session=True,
        ) as process:
            try:
                found, error = _answered(process, request.encode(), limits.wall_s + GRACE_S)
            finally:
                process.kill()
    if not isinstance(found, list) or len(found) != len(programs):
        raise SandboxBroken(error[-200:])
    return found


def _answered(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> tuple[list[bool] | None, str]:
    """Standard input stays open until the answer is there: its end tells the process that nobody waits."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    until = time.monotonic() + seconds
    try:
        process.stdin.write(request)
        process.stdin.flush()
    except BrokenPipeError:
        return None, process.stderr.read().decode(errors="replace")
    os.set_blocking(process.stdout.fileno(), False)
    said = b""
    while not said.endswith(b"\n") and time.monotonic() < until and process.poll() is None:
        if select.select([process.stdout], [], [], min(1.0, max(0.0, until - time.monotonic())))[0]:
            said += process.stdout.read() or b""
    said += process.stdout.read() or b""
    if said.endswith(b"\n"):
        found: list[bool] = json.loads(said)
        return found, ""
    process.kill()
    return None, process.stderr.read().decode(errors="replace") or "no answer"
