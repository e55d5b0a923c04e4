"""One process of a job of several, around its work: where its output goes, what it leaves when it fails, who watches it.

Rank 0 speaks on the screen. The others write into logs of their own, libraries' messages included; every rank's log has its
error, and the Python stack of a crash.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from llmfactory.launch.agreement import insist_on_agreement
from llmfactory.launch.failure import Failure, log_of, of_error
from llmfactory.launch.watchdog import Watchdog, join_peers

HEARD_S = 2.5
"""Seconds within which the watchdogs of all processes have read a failure."""
FIRST_S = 3.0
"""Seconds to wait for the error that made this process lose its connection."""


@contextmanager
def rank_of_job(config: Mapping[str, Any], errors: Path, logs: Path | None) -> Iterator[None]:
    """Around all that a process does. What is raised inside is kept, told to the other processes, and raised.

    Args:
        config: the resolved config; without a `parallel.timeout_s` nobody watches.
        errors: folder for `error_<attempt>_<rank>.json`, which the agent reads.
        logs: folder for `rank_<rank>.txt`; None: everything goes to the screen.

    Raises UserError if processes on several machines were started from different configs or versions.
    """
    timeout_s = config.get("parallel", {}).get("timeout_s")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    several = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
    log = None if logs is None else log_of(logs, rank)

    def save(failure: Failure) -> None:
        failure.save(errors, attempt)
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # for the table that torch's launcher prints
            failure.save_for_torch(Path(os.environ["TORCHELASTIC_ERROR_FILE"]))

    errors.mkdir(exist_ok=True)
    with _logging(log, rank, attempt) as written:
        peers = watchdog = None
        try:
            if size > 1 and timeout_s is not None:
                _keep_flight_record(logs)
                peers = join_peers(timeout_s)
                watchdog = Watchdog(peers, timeout_s, save, log, None if logs is None else logs / f"flight_recorder_{rank}")
                watchdog.start()
                if several:
                    insist_on_agreement(peers, config, timeout_s)
            yield
            if watchdog is not None:
                watchdog.stop(well=True)
        except BaseException as error:
            failure = of_error(error, rank, log)
            if peers is not None:
                with suppress(RuntimeError):  # the store may be gone
                    first = peers.failure(FIRST_S) if failure.follows else None
                    if first is not None:
                        save(first)
                    peers.tell(failure)
            save(failure)
            if peers is not None and several:  # whoever holds the store stays until the others have heard
                time.sleep(HEARD_S)
            traceback.print_exc(file=written)
            if watchdog is not None:
                watchdog.stop(well=False)
            raise


@contextmanager
def _logging(log: Path | None, rank: int, attempt: int) -> Iterator[TextIO]:
    """Yields the file for errors."""
    if log is None:
        yield sys.stderr
        return
    log.parent.mkdir(exist_ok=True)
    with open(log, "a", encoding="utf-8", errors="replace", buffering=1) as file:
        when = datetime.now().isoformat(" ", "seconds")
        file.write(f"--- {when}, rank {rank}, attempt {attempt}, process {os.getpid()} on {socket.gethostname()}\n")
        faulthandler.enable(file)
        if rank != 0:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        try:
            yield file
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            faulthandler.disable()


def _keep_flight_record(logs: Path | None) -> None:
    """Let NCCL's own time-out, which comes after the watchdog's, write down what it saw."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "500")
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if logs is not None:
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(logs / "flight_recorder_"))
