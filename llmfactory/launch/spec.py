"""Catalogue of launchers: how the worker processes of one job are started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least

Worker = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the resolved config as a plain dict, returns the job's results (of rank 0)."""


@dataclass(kw_only=True, slots=True)
class LaunchSpec(Spec):
    """Base of the launchers."""

    def world(self) -> int:
        """Number of worker processes."""
        return 1

    def run(self, worker: Worker, config: dict[str, Any]) -> dict[str, Any]:
        """Run the worker in every process and return what rank 0 returned. Raises what the first failing rank raised."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of launch")


@dataclass(kw_only=True, slots=True)
class Single(LaunchSpec):
    """In this very process, so that a debugger works."""

    def run(self, worker: Worker, config: dict[str, Any]) -> dict[str, Any]:
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

    def run(self, worker: Worker, config: dict[str, Any]) -> dict[str, Any]:
        from llmfactory.launch.local import run_local

        return run_local(self, worker, config)
