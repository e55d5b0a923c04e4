"""This machine's share of a job's processes, under torch's elastic agent, which watches them and starts them again if asked to.

The worker gets the plain config, never the command line: a child that parsed the arguments again would run a whole sweep, or
let each rank sample its own learning rate.

SIGTERM (or Ctrl-C) to the parent is handed to the workers, which save and return; the agent is not told, so that it waits for
them as long as that takes. A parent that is killed takes its workers along in the same way.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.parent import terminate_with_parent
from llmfactory.launch.failure import UNBEGUN, first_error, saved_failures, write_whole
from llmfactory.launch.port import insist_port_is_ours, split_endpoint
from llmfactory.launch.rank import rank_of_job
from llmfactory.launch.spec import Worker

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
LOGS = "logs"
"""Of a run folder: what each process printed."""
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Set to 1, processes meet at a store of their own, held by rank 0. Torch lets them share the agents' store by default, and
processes that are started again find there what the ended ones wrote: torch 2.13 then hangs when it joins them by gloo."""
LOOPBACK = ("127.0.0.1", "localhost")
"""Hosts at which only processes of one machine meet."""


@dataclass(frozen=True, slots=True)
class Share:
    """This machine's processes among all of a job."""

    processes: int
    nodes: int = 1
    endpoint: str = "127.0.0.1:0"
    """Where the machines meet."""
    node_rank: int | None = None
    """None: torch numbers the machines."""
    name: str | None = None
    """The same on all machines of the job; None: one machine's own."""
    max_restarts: int = 0
    join_timeout_s: float = 600.0


def run_share(share: Share, worker: Worker, config: dict[str, Any], folder: Path | None, threads: int | None) -> dict[str, Any]:
    """Run this machine's processes and return what rank 0 returned.

    Args:
        threads: of each process on the CPU; None: this machine's cores shared out.

    Raises what the process that failed first raised.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="llmfactory-", ignore_cleanup_errors=True) as temporary:
        exchange = Path(temporary)
        meeting: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_configs": {"join_timeout": int(share.join_timeout_s)}}
        if share.node_rank is not None:
            meeting = {
                "rdzv_backend": "static",
                "rdzv_configs": {"rank": share.node_rank, "timeout": int(share.join_timeout_s)},
            }
        launch = LaunchConfig(
            min_nodes=share.nodes,
            max_nodes=share.nodes,
            nproc_per_node=share.processes,
            run_id=share.name or exchange.name,
            rdzv_endpoint=share.endpoint,
            local_addr="127.0.0.1" if split_endpoint(share.endpoint)[0] in LOOPBACK else None,
            max_restarts=share.max_restarts,
            start_method="spawn",
            signals_to_handle="SIGUSR2",  # none of those that `handing_on_signals` handles
            logs_specs=DefaultLogsSpecs(log_dir=str(exchange / "agent")),
            **meeting,
        )
        logs = None if folder is None else folder / LOGS
        threads = threads or max(1, cores() // share.processes)
        with child_environment(threads), quiet_agent(), handing_on_signals(exchange):
            if share.nodes > 1:
                insist_port_is_ours(share.endpoint)
            try:
                elastic_launch(launch, _entry)(worker, config, temporary, logs, os.getpid())
            except ChildFailedError as error:
                raise _first_error(exchange, error, logs) from None
            except Exception as error:
                raise _not_met(share, error) from error
        if (exchange / "result.json").exists():
            return dict(json.loads((exchange / "result.json").read_text()))
        assert folder is not None  # rank 0 is on another machine
        return dict(json.loads((folder / "result.json").read_text()))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _not_met(share: Share, error: Exception) -> Exception:
    """The agent's own trouble: the machines have not found each other."""
    from torch.distributed import DistError
    from torch.distributed.elastic.rendezvous import RendezvousError

    if not isinstance(error, (DistError, RendezvousError)):
        return error
    lines = str(error.__cause__ or error).strip().splitlines()
    cause = lines[0] if lines else "some of them have not come"
    return UserError(
        f"the {share.nodes} machines of the job have not met at {share.endpoint} within {share.join_timeout_s:g} s "
        f"(launch.join_timeout_s): {cause}. Is the line running on every machine, and is the host reachable from here?"
    )


@contextmanager
def child_environment(threads: int) -> Iterator[None]:
    """Children inherit this process's environment: take out what another launcher put in, put in their share of threads."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(FOREIGN):
            del os.environ[name]
    os.environ |= {"OMP_NUM_THREADS": str(threads), OWN_STORE: "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def quiet_agent() -> Iterator[None]:
    """The agent logs each failure several times; ours is reported once, by whoever catches it."""
    names = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")
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
        children = multiprocessing.active_children()
        if not children:  # the machines of the job have not met yet
            raise KeyboardInterrupt(UNBEGUN)
        for child in children:
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


def _entry(worker: Worker, config: dict[str, Any], exchange: str, logs: Path | None, parent: int) -> None:
    """What each process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent hands it on as SIGTERM
    terminate_with_parent()
    folder = Path(exchange)
    with rank_of_job(config, folder, logs):
        if _stop_asked(folder):
            raise UserError(UNBEGUN)
        result = worker(config)
    if os.environ["RANK"] == "0":
        write_whole(folder / "result.json", json.dumps(result))
    threading.Thread(target=_end_without_parent, args=(parent,), daemon=True).start()


def _end_without_parent(parent: int) -> None:
    """Once the work is done: if the parent is gone, nobody will collect the return value, and the agent's handshake would
    wait for ever. Looked at again and again, because a dying parent of many threads stays the parent for a while.
    """
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


def _first_error(exchange: Path, failure: Any, logs: Path | None) -> BaseException:
    """The error of the rank that failed first in the last attempt, as the kind it was; KeyboardInterrupt for a signal."""
    codes = {rank: one.exitcode for rank, one in failure.failures.items()}
    killed = [code for code in codes.values() if code < 0]
    if killed and _stop_asked(exchange):
        return KeyboardInterrupt(f"stopped by {signal.Signals(-killed[0]).name} before there was anything to save")
    return first_error(saved_failures(exchange), codes, logs)
