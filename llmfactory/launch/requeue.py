"""launch=slurm through submitit: a job that is queued again when its time is up or it is preempted.

On the signal that Slurm sends before, torch's launcher is told to stop, the processes save and end, and the same job begins
again from its last checkpoint when its turn comes.
"""

from __future__ import annotations

import importlib
import math
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.launch.failure import outcome
from llmfactory.launch.spec import Slurm, minutes
from llmfactory.launch.torchrun import SAVING_S, line, python_of

REQUEUES = 1000
"""How often a job may be queued again because its time was up."""
ENDPOINT = "ENDPOINT"
"""Stands in the launcher's line until the job's first machine is known."""


def submit(spec: Slurm, folder: Path, logs: Path, gpus: int, cluster: str = "slurm") -> dict[str, Any] | None:
    """See `LaunchSpec.run`. `cluster`: of submitit's; its `local` runs the job on this machine."""
    try:
        submitit = importlib.import_module("submitit")
    except ImportError:
        raise MissingExtra("submitit", "slurm", "launch.submit=submitit") from None
    assert spec.time is not None
    try:
        executor = submitit.AutoExecutor(
            logs / "submitit", cluster, slurm_max_num_timeout=REQUEUES, slurm_python=python_of(spec.python)
        )
    except RuntimeError as error:  # no srun here
        raise UserError(f"launch.submit=submitit: {error}; submit where Slurm is, or launch.submit=none") from error
    further = dict(text.lstrip("-").partition("=")[::2] for text in spec.lines)
    named = {"partition": spec.partition, "account": spec.account, "qos": spec.qos, "cpus_per_task": spec.cpus}
    executor.update_parameters(
        name=folder.name,
        nodes=spec.nodes,
        tasks_per_node=1,
        gpus_per_node=gpus,
        timeout_min=math.ceil(minutes(spec.time)),
        slurm_setup=list(spec.setup),
        slurm_srun_args=list(spec.srun),
        slurm_signal_delay_s=SAVING_S,
        slurm_additional_parameters=further,
        **{f"slurm_{name}": value for name, value in named.items() if value is not None},
    )
    words = line(spec, ENDPOINT, folder, python=python_of(spec.python))
    job = executor.submit(Machine(words, str(logs), alone=spec.nodes == 1))
    print(f"job {job.job_id} is queued; it prints into {job.paths.stdout}", flush=True)
    if not spec.wait:
        return None
    failed = job.exception()
    return outcome(folder, logs, 0 if failed is None else 1, f"submitit's job {job.job_id}")


@dataclass
class Machine:
    """What submitit runs on each machine."""

    words: list[str]
    logs: str
    alone: bool
    """Whether there is no other machine to meet."""
    process: subprocess.Popen[bytes] | None = field(default=None, compare=False)

    def __call__(self) -> None:
        submitit = importlib.import_module("submitit")
        place = submitit.JobEnvironment()
        endpoint = self._meet(place.global_rank, place.hostnames[0], str(place.job_id))
        self.process = subprocess.Popen([word.replace(ENDPOINT, endpoint) for word in self.words])
        while self.process.poll() is None:
            time.sleep(0.2)
        if self.process.returncode != 0:
            raise RuntimeError(f"torch's launcher ended with {self.process.returncode}")

    def checkpoint(self) -> Any:
        """Called by submitit, in the main thread, when the time is up."""
        submitit = importlib.import_module("submitit")
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + SAVING_S
            while self.process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
        return submitit.helpers.DelayedSubmission(Machine(self.words, self.logs, self.alone))

    def _meet(self, number: int, host: str, job: str) -> str:
        """The first machine chooses a free port and tells the others by a file of the run."""
        path = Path(self.logs) / f"endpoint_{job}"
        if number == 0:
            with socket.socket() as free:
                free.bind(("", 0))
                endpoint = f"{'127.0.0.1' if self.alone else host}:{free.getsockname()[1]}"
            path.write_text(endpoint)
            return endpoint
        while not path.exists() or ":" not in path.read_text():
            time.sleep(0.5)
        return path.read_text()
