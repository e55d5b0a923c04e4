"""Worker processes on this machine, under torch's elastic agent, which watches them and starts them again if asked to.

The worker gets the plain config, never the command line: a child that parsed the arguments again would run a whole sweep, or
let each rank sample its own learning rate. Errors and results travel as JSON files in a private folder, because a killed
agent loses its queues, and because the first failure must be told from those of its peers that lost their connection by it.

SIGTERM (or Ctrl-C) to the parent is handed to the workers, which save and return; the agent is not told, so that it waits for
them as long as that takes. A parent that is killed takes its workers along in the same way.
"""

from __future__ import annotations

import ctypes
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.launch.spec import Local, Worker

FOREIGN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_",
    "SLURM_",
    "TORCHELASTIC_",
)
"""Prefixes of environment variables by which another launcher speaks to its own children."""

UNBEGUN = "stopped by a signal before the job began"
"""What a worker says of a signal; the agent takes a worker that raises KeyboardInterrupt for one that ended well."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(spec: Local, worker: Worker, config: dict[str, Any]) -> dict[str, Any]:
    """See `LaunchSpec.run`."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="llmfactory-", ignore_cleanup_errors=True) as temporary:
        exchange = Path(temporary)
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=spec.processes,
            run_id=exchange.name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=spec.max_restarts,
            start_method="spawn",
            signals_to_handle="SIGUSR2",  # none of those that `handing_on` handles
            logs_specs=DefaultLogsSpecs(log_dir=str(exchange / "logs")),
        )
        threads = spec.threads or max(1, cores() // spec.processes)
        with child_environment(threads), quiet_agent(), handing_on_signals(exchange):
            try:
                elastic_launch(launch, _entry)(worker, config, temporary, os.getpid())
            except ChildFailedError as error:
                raise _first_error(exchange, error) from None
        return dict(json.loads((exchange / "result.json").read_text()))


@contextmanager
def child_environment(threads: int) -> Iterator[None]:
    """Children inherit this process's environment: take out what another launcher put in, put in their share of threads."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(FOREIGN):
            del os.environ[name]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def quiet_agent() -> Iterator[None]:
    """The agent logs each failure several times; ours is reported once, by whoever catches it."""
    names = ("torch.distributed.elastic", "torch.distributed.launcher")
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith(names)]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextmanager
def handing_on_signals(exchange: Path) -> Iterator[None]:
    """Hand SIGTERM and Ctrl-C to the workers as SIGTERM; a second Ctrl-C interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may; whoever runs jobs in threads handles signals himself
        return

    def hand_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and _stop_asked(exchange):
            raise KeyboardInterrupt
        (exchange / "stop").touch()  # for workers that are not far enough to have a handler
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)

    handled = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, hand_on) for number in handled}
    unused = signal.getsignal(signal.SIGUSR2)  # the agent installs its own
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGUSR2, unused)


def _stop_asked(exchange: Path) -> bool:
    return (exchange / "stop").exists()


def _entry(worker: Worker, config: dict[str, Any], exchange: str, parent: int) -> None:
    """What each process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent hands it on as SIGTERM
    _terminate_with_parent()
    rank, folder = int(os.environ["RANK"]), Path(exchange)
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    try:
        if _stop_asked(folder):
            raise UserError(UNBEGUN)
        result = worker(config)
    except BaseException as error:
        _write(folder / f"error_{attempt}_{rank}.json", _as_data(error, rank))
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    if rank == 0:
        _write(folder / "result.json", result)
    threading.Thread(target=_end_without_parent, args=(parent,), daemon=True).start()


def _end_without_parent(parent: int) -> None:
    """Once the work is done: if the parent is gone, nobody will collect the return value, and the agent's handshake would
    wait for ever. Looked at again and again, because a dying parent of many threads stays the parent for a while.
    """
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


def _terminate_with_parent() -> None:
    """Linux only: let the system send SIGTERM when the parent dies (torch asks for SIGINT, which is ignored here)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))


def _write(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data))
    os.replace(temporary, path)


def _as_data(error: BaseException, rank: int) -> dict[str, Any]:
    problems = None
    if isinstance(error, ConfigError):
        problems = [[problem.path, repr(problem.value), problem.reason, problem.repair] for problem in error.problems]
    return {
        "rank": rank,
        "time": time.time(),
        "problems": problems,
        "message": str(error) if isinstance(error, UserError) else None,
        "traceback": traceback.format_exc(),
    }


class _Shown:
    """A value of which only the text survived the way between two processes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _first_error(exchange: Path, failure: Any) -> BaseException:
    """The error of the rank that failed first in the last attempt, as the kind it was; KeyboardInterrupt for a signal."""
    found = [(int(path.stem.split("_")[1]), json.loads(path.read_text())) for path in exchange.glob("error_*.json")]
    last = max((attempt for attempt, _ in found), default=0)
    errors = sorted((data for attempt, data in found if attempt == last), key=lambda data: float(data["time"]))
    killed = {rank: one.exitcode for rank, one in failure.failures.items() if one.exitcode < 0}
    if killed and (_stop_asked(exchange) or not errors or errors[0]["rank"] not in killed):
        rank, code = next(iter(killed.items()))
        name = signal.Signals(-code).name
        if _stop_asked(exchange):
            return KeyboardInterrupt(f"stopped by {name} before there was anything to save")
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return UserError(f"the process of rank {rank} was killed by {name}{hint}")
    if not errors:
        codes = ", ".join(f"rank {rank}: {one.exitcode}" for rank, one in failure.failures.items())
        return UserError(f"worker processes ended without a result (exit codes: {codes})")
    first = errors[0]
    if first["problems"] is not None:
        return ConfigError([Problem(path, _Shown(value), reason, repair) for path, value, reason, repair in first["problems"]])
    if first["message"] == UNBEGUN:
        return KeyboardInterrupt(UNBEGUN)
    if first["message"] is not None:
        return UserError(first["message"])
    return RuntimeError(f"rank {first['rank']} failed:\n{first['traceback']}")
