"""What a failed process leaves for others to read, and which of several failures began it all.

Errors travel as JSON: in files, because a killed agent loses its queues, and between machines through the job's store. A
process that lost its connection to another one failed as a consequence; so did one that was ended because of another.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmfactory.core.errors import ConfigError, Problem, UserError

UNBEGUN = "stopped by a signal before the job began"
"""What a worker says of a signal; the agent takes a worker that raises KeyboardInterrupt for one that ended well."""

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "timed out after",
    "Socket Timeout",
    "remote process has exited",
    "NCCL communicator was aborted",
    "Failed to recv, got 0 bytes",
)
"""What gloo, NCCL and torch's store say when the process at the other end is gone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of one process."""

    rank: int
    host: str
    time: float
    """Seconds since 1970."""
    log: str | None
    """The process's own log file."""
    follows: bool
    """Whether it failed because another process had."""
    problems: list[list[Any]] | None
    """Of a wrong config: path, shown value, reason, repair of each."""
    message: str | None
    """Of what was foreseen: the whole text; None: see `trace`."""
    trace: str

    def save(self, folder: Path, attempt: int) -> None:
        """Errors of several attempts lie side by side."""
        write_whole(folder / f"error_{attempt}_{self.rank}.json", json.dumps(asdict(self)))

    def save_for_torch(self, path: Path) -> None:
        """In the form that torch's launcher reads."""
        text = str(self.error())
        extra = {"py_callstack": text, "timestamp": str(int(self.time))}
        write_whole(path, json.dumps({"message": {"message": text, "extraInfo": extra}}))

    def as_text(self) -> str:
        return json.dumps(asdict(self))

    @property
    def where(self) -> str:
        """Whose error it is, and where to read on."""
        return f"rank {self.rank} on {self.host}" + (f"; its log: {self.log}" if self.log else "")

    def error(self) -> BaseException:
        """The error as the kind it was."""
        if self.problems is not None:
            return ConfigError([Problem(path, _Shown(value), reason, repair) for path, value, reason, repair in self.problems])
        if self.message == UNBEGUN:
            return KeyboardInterrupt(UNBEGUN)
        if self.message is not None:
            return UserError(f"{self.message}\n({self.where})")
        if self.follows:
            last = self.trace.strip().splitlines()[-1]
            return UserError(
                f"a process lost its connection to another one, which has ended or is out of reach: {last}\n({self.where})"
            )
        return RuntimeError(f"rank {self.rank} failed:\n{self.trace}({self.where})")


def from_text(text: str) -> Failure:
    return Failure(**json.loads(text))


def of_error(error: BaseException, rank: int, log: Path | None) -> Failure:
    """The failure of this process; called while the error is handled."""
    problems = None
    if isinstance(error, ConfigError):
        problems = [[problem.path, repr(problem.value), problem.reason, problem.repair] for problem in error.problems]
    return Failure(
        rank=rank,
        host=socket.gethostname(),
        time=time.time(),
        log=None if log is None else str(log),
        follows=lost_connection(error),
        problems=problems,
        message=str(error) if isinstance(error, UserError) else None,
        trace=traceback.format_exc(),
    )


def lost_connection(error: BaseException) -> bool:
    """Whether it says that another process is gone."""
    foreseen = isinstance(error, UserError)
    return isinstance(error, (RuntimeError, ConnectionError)) and not foreseen and any(text in str(error) for text in LOST)


class _Shown:
    """A value of which only the text survived the way between two processes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def saved_failures(folder: Path) -> list[Failure]:
    """Those of the last attempt, the one that began it first."""
    found = [(int(path.stem.split("_")[1]), from_text(path.read_text())) for path in folder.glob("error_*_*.json")]
    last = max((attempt for attempt, _ in found), default=0)
    return sorted((one for attempt, one in found if attempt == last), key=lambda one: (one.follows, one.time))


def first_error(failures: list[Failure], exit_codes: Mapping[int, int], logs: Path | None) -> BaseException:
    """What to raise for the job.

    Args:
        failures: from `saved_failures`.
        exit_codes: of the processes that the agent found failed first, by rank; negative: killed by that signal.
    """
    spoke = {one.rank for one in failures}
    killed = {rank: code for rank, code in exit_codes.items() if rank not in spoke and code < 0}
    silent = {rank: code for rank, code in exit_codes.items() if rank not in spoke}
    first = failures[0] if failures else None
    if (killed and (first is None or first.follows)) or (silent and (first is None or (first.follows and first.message is None))):
        rank, code = next(iter((killed or silent).items()))
        log = f"; its log: {log_of(logs, rank)}" if logs else ""
        if code >= 0:
            return UserError(f"the process of rank {rank} ended with exit code {code} and without a word{log}")
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return UserError(f"the process of rank {rank} was killed by {name}{hint}{log}")
    if first is not None:
        return first.error()
    return UserError("worker processes ended without a result")


def log_of(logs: Path, rank: int) -> Path:
    """The log of one process in the run's folder of logs."""
    return logs / f"rank_{rank}.txt"


def write_whole(path: Path, text: str) -> None:
    """A reader never sees half a file."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def forget(logs: Path) -> None:
    """Errors of an earlier start."""
    for path in logs.glob("error_*_*.json"):
        path.unlink()


def outcome(folder: Path, logs: Path, code: int, job: str) -> dict[str, Any]:
    """Results of a job whose processes started from a saved config, or its first error.

    Args:
        code: exit code of what ran it; 0: well.
        job: what ran it, for the message where no process left an error.
    """
    if code == 0:
        return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))
    failures = saved_failures(logs)
    raise first_error(failures, {}, logs) if failures else UserError(f"{job} ended with exit code {code}; see {logs}")
