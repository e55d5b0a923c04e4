"""Catalogue of launchers: how the worker processes of one job are started."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import MISSING, Spec, above, at_least

Worker = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the resolved config as a plain dict, returns the job's results (of rank 0)."""

TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")
"""What Slurm reads as a time (sbatch(1), --time)."""


class Submit(Enum):
    """Who hands a script to Slurm."""

    none = "nobody: the script is written, and the command to submit it is printed"
    sbatch = "Slurm's own command"
    submitit = "the package of that name, which queues the job again when its time is up or it is preempted"


@dataclass(kw_only=True, slots=True)
class LaunchSpec(Spec):
    """Base of the launchers."""

    def world(self) -> int:
        """Number of worker processes."""
        return 1

    def machines(self) -> int:
        """Number of machines that they run on."""
        return 1

    @property
    def from_folder(self) -> bool:
        """Whether workers start from the config.yaml of a run folder, so that there must be one."""
        return False

    @property
    def waits(self) -> str | None:
        """None: `run` returns when the job is done, with its results; else the overrides that make it so."""
        return None

    def run(self, worker: Worker, config: dict[str, Any], folder: Path | None = None) -> dict[str, Any] | None:
        """Run the worker in every process and return what rank 0 returned; None: the job runs later, or elsewhere.

        Args:
            folder: the run folder, in which `config.yaml` stands already; None: the job leaves nothing behind.

        Raises what the first failing rank raised, with the name of its log; UserError where processes cannot be started.
        """
        raise TypeError(f"{type(self).__name__} is a base: pick an option of launch")


@dataclass(kw_only=True, slots=True)
class Single(LaunchSpec):
    """In this very process, so that a debugger works."""

    def run(self, worker: Worker, config: dict[str, Any], folder: Path | None = None) -> dict[str, Any] | None:
        return worker(config)


@dataclass(kw_only=True, slots=True)
class Local(LaunchSpec):
    """Several processes on this machine, started and watched by torch's elastic agent."""

    processes: int = 2
    """Number of processes."""
    threads: int | None = None
    """CPU threads of each process; None: the machine's cores shared out evenly."""
    max_restarts: int = 0
    """How often the processes are started again after one failed; each time the job resumes from its last checkpoint."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "processes", "threads")
        yield from at_least(self, 0, "max_restarts")

    def world(self) -> int:
        return self.processes

    def run(self, worker: Worker, config: dict[str, Any], folder: Path | None = None) -> dict[str, Any] | None:
        from llmfactory.launch.local import run_local

        return run_local(self, worker, config, folder)


@dataclass(kw_only=True, slots=True)
class MachinesSpec(LaunchSpec):
    """Base of launchers that start the same number of processes on each of several machines.

    All of them read the run folder under the same path.
    """

    nodes: int = 1
    """Number of machines."""
    processes: int = 8
    """Processes on each machine: one for each GPU."""
    max_restarts: int = 0
    """How often the processes are started again after one failed; each time the job resumes from its last checkpoint."""
    join_timeout_s: float = 600.0
    """Seconds that a machine waits for the others to be there."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "nodes", "processes")
        yield from at_least(self, 0, "max_restarts")
        yield from above(self, 0.0, "join_timeout_s", repair=600)

    def world(self) -> int:
        return self.nodes * self.processes

    def machines(self) -> int:
        return self.nodes

    @property
    def from_folder(self) -> bool:
        return True


@dataclass(kw_only=True, slots=True)
class Torchrun(MachinesSpec):
    """Machines that are at hand: prints torch's launcher line for each, or starts this machine's processes too."""

    endpoint: str = MISSING
    """Where the machines meet: `host:port`, the host one of them, the port free there."""
    node_rank: int | None = None
    """This machine's number, from 0 (which `endpoint` names); ranks follow it. None: torch numbers machines as they meet."""
    start: bool = False
    """Start this machine's processes and wait for the job, instead of printing this machine's line too."""

    def problems(self) -> Iterator[Problem]:
        yield from MachinesSpec.problems(self)
        yield from at_least(self, 0, "node_rank")
        host, _, port = self.endpoint.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            reason = "must be host:port, with a port from 1 to 65535"
            yield Problem("endpoint", self.endpoint, reason, f"endpoint={host or self.endpoint or 'localhost'}:29500")
        if self.node_rank is not None and self.node_rank >= self.nodes:
            reason = f"machines are numbered from 0 to {self.nodes - 1} (launch.nodes={self.nodes})"
            yield Problem("node_rank", self.node_rank, reason, "node_rank=0")
        if self.node_rank is not None and self.max_restarts:
            reason = f"machines that are numbered by hand cannot meet again after a failure (node_rank={self.node_rank})"
            yield Problem("max_restarts", self.max_restarts, reason, "node_rank=null")

    @property
    def waits(self) -> str | None:
        return None if self.start else "launch.start=true"

    def run(self, worker: Worker, config: dict[str, Any], folder: Path | None = None) -> dict[str, Any] | None:
        from llmfactory.launch.torchrun import run_torchrun

        assert folder is not None
        return run_torchrun(self, worker, config, folder)


@dataclass(kw_only=True, slots=True)
class Slurm(MachinesSpec):
    """A batch script for Slurm, written into the run folder; each machine runs torch's launcher under srun."""

    gpus: int | None = None
    """GPUs to ask for on each machine; None: as many as processes, or none where trainer.device=cpu."""
    cpus: int | None = None
    """CPU cores to ask for on each machine; None: the cluster's default."""
    time: str | None = None
    """Longest time, as Slurm writes it (`30`, `12:00:00`, `2-00:00:00`); None: the partition's default."""
    partition: str | None = None
    """None: the cluster's default."""
    account: str | None = None
    """Who pays; None: the user's default."""
    qos: str | None = None
    """Quality of service; None: the account's default."""
    lines: list[str] = field(default_factory=list)
    """Further options of sbatch, as after `#SBATCH`: `--exclusive`, `--mem=0`."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the start: `module load cuda`, `source venv/bin/activate`."""
    srun: list[str] = field(default_factory=list)
    """Further options of srun: `--container-image=...`, `--cpu-bind=none`."""
    python: str | None = None
    """Python of the environment that the machines run (in a container: its own); None: the one that runs this command."""
    submit: Submit = Submit.none
    """Who submits the script."""
    wait: bool = False
    """Wait until the submitted job has ended, and show its results."""

    def problems(self) -> Iterator[Problem]:
        yield from MachinesSpec.problems(self)
        yield from at_least(self, 0, "gpus")
        yield from at_least(self, 1, "cpus")
        if self.time is not None and not TIME.fullmatch(self.time):
            yield Problem(
                "time", self.time, "is no time that Slurm reads: minutes, or [days-]hours:minutes:seconds", "time='01:00:00'"
            )
        for name in ("lines", "srun"):
            wrong = [text for text in getattr(self, name) if not text.startswith("-") or "\n" in text]
            if wrong:
                yield Problem(name, wrong[0], "must be options, one each, that begin with -", f"{name}=[]")
        if self.submit is Submit.submitit and self.time is None:
            yield Problem("time", None, "submitit must know when the time is up (submit=submitit)", "time='01:00:00'")
        if self.wait and self.submit is Submit.none:
            yield Problem("wait", True, "nothing is submitted, so there is nothing to wait for (submit=none)", "submit=sbatch")

    @property
    def waits(self) -> str | None:
        return (
            None if self.wait else f"launch.submit={'submitit' if self.submit is Submit.submitit else 'sbatch'} launch.wait=true"
        )

    def run(self, worker: Worker, config: dict[str, Any], folder: Path | None = None) -> dict[str, Any] | None:
        from llmfactory.launch.slurm import run_slurm

        assert folder is not None
        return run_slurm(self, config, folder)


@dataclass(kw_only=True, slots=True)
class Ray(MachinesSpec):
    """Machines of a Ray cluster: one task on each runs torch's launcher."""

    address: str = "auto"
    """Of the cluster (`host:6379`, `ray://host:10001`); auto: the one that this machine is part of; local: one made for the job."""
    gpus: int | None = None
    """GPUs to reserve on each machine; None: as many as processes, or none where trainer.device=cpu."""
    cpus: int | None = None
    """CPU cores to reserve on each machine; None: as many as processes."""

    def problems(self) -> Iterator[Problem]:
        yield from MachinesSpec.problems(self)
        yield from at_least(self, 0, "gpus")
        yield from at_least(self, 1, "cpus")

    def run(self, worker: Worker, config: dict[str, Any], folder: Path | None = None) -> dict[str, Any] | None:
        from llmfactory.launch.ray import run_ray

        assert folder is not None
        return run_ray(self, config, folder)


def minutes(time: str) -> float:
    """Of a time as Slurm writes it."""
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, mins, secs = [*parts, 0, 0][:3]
        return int(days) * 1440 + hours * 60 + mins + secs / 60
    if len(parts) == 3:
        return parts[0] * 60 + parts[1] + parts[2] / 60
    return parts[0] + (parts[1] / 60 if len(parts) == 2 else 0)
