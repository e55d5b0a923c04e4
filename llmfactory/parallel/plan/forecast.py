"""What a layout needs and how fast it is: memory, messages and time of each process of its pipeline."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from llmfactory.parallel.plan.accelerator import Machine
from llmfactory.parallel.plan.arrangement import Arrangement, Pace, arrange, pace, stages
from llmfactory.parallel.plan.memory import Memory, memory_of
from llmfactory.parallel.plan.messages import Message, messages
from llmfactory.parallel.plan.pieces import Bundle, Work, bundled
from llmfactory.parallel.plan.seconds import Seconds, seconds_of
from llmfactory.parallel.schedule import stages_of
from llmfactory.parallel.spec import Mesh, Schedule


@dataclass(frozen=True, slots=True)
class Process:
    """One of a pipeline; all others with its place in it are like it."""

    number: int
    bundles: tuple[Bundle, ...]
    memory: Memory
    messages: tuple[Message, ...]
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of a layout on so many processes."""

    arrangement: Arrangement
    pace: Pace
    processes: tuple[Process, ...]
    """Of the pipeline, in order; one of several that are alike."""
    memory_limit: float
    """Bytes that a process may fill."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return max(process.seconds.total for process in self.processes)

    @property
    def slowest(self) -> Process:
        return max(self.processes, key=lambda process: process.seconds.total)

    @property
    def fullest(self) -> Process:
        return max(self.processes, key=lambda process: process.memory.total)

    @property
    def fits(self) -> bool:
        return self.fullest.memory.total <= self.memory_limit


def process_of(number: int, bundles: tuple[Bundle, ...], at: Arrangement, rate: Pace, work: Work, machine: Machine) -> Process:
    """Number `number` of a pipeline, which has these pieces."""
    sent = tuple(messages(bundles, number, at, rate, work))
    memory = memory_of(bundles, number, at, rate, work)
    return Process(number, bundles, memory, sent, seconds_of(bundles, sent, at, rate, work, machine))


def forecast(mesh: Mesh, world: int, micro_batch_size: int | None, work: Work, machine: Machine) -> Forecast:
    """Raises ValueError where the degrees are no such number of processes."""
    at = arrange(mesh, world)
    rate = pace(work.rows, at.data, micro_batch_size)
    dealt = dealt_to(at, work)
    return Forecast(
        at,
        rate,
        tuple(process_of(number, dealt[number], at, rate, work, machine) for number in _different(dealt)),
        machine.memory,
    )


def dealt_to(at: Arrangement, work: Work) -> tuple[tuple[Bundle, ...], ...]:
    """The pieces of each process of the pipeline."""
    return _dealt(work, at.pp, at.stages_per_process, at.mesh.schedule)


@functools.lru_cache(256)
def _dealt(work: Work, pp: int, turns: int, schedule: Schedule) -> tuple[tuple[Bundle, ...], ...]:
    dealt = stages(work, pp * turns)
    owned = [stages_of(number, pp, turns, schedule) if pp > 1 else [0] for number in range(pp)]
    return tuple(bundled([piece for stage in mine for piece in dealt[stage]]) for mine in owned)


def _different(dealt: Sequence[tuple[Bundle, ...]]) -> list[int]:
    """Processes of the pipeline that may differ from the ones before: those with other pieces, the second and the last. Of alike
    ones the first holds most micro-batches."""
    first: dict[tuple[tuple[str, int, int], ...], int] = {}
    for number, bundles in enumerate(dealt):
        first.setdefault(tuple((one.piece.kind or one.piece.name, one.uses, one.owned) for one in bundles), number)
    return sorted({*first.values(), min(1, len(dealt) - 1), len(dealt) - 1})
