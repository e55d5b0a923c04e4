"""How fast the processes of a job talk to each other: a table, and a file that `hardware=measured` reads.

Give the job a name, and the table, a plot and a file `communication_<axis>.yaml` stay in its run folder.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml  # type: ignore[import-untyped]

from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.parallel.bench import BUFFERS, OPERATIONS, Point, axis_groups, fit, free_bytes, measure, message_sizes
from llmfactory.parallel.mesh import AXES, World, device_type, open_world
from llmfactory.parallel.plan.measured import Measurement, Speed
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Axis, BenchComm

COLUMNS = "{:<15}{:>14}{:>13}{:>25}{:>13}{:>13}"
"""Operation, size, time, spread, algorithm and bus bandwidth."""


class BenchCommJob(StageJob):
    """Prints each figure as it comes."""

    def __init__(self, spec: BenchComm) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        lines: list[str] = []
        axes: dict[str, Any] = {}
        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            self._insist_on_room(world)

            def show(line: str) -> None:
                if world.rank == 0:
                    print(line, flush=True)
                    lines.append(line)

            nodes = world.gather((socket.gethostname(), world.rank // world.local_size))
            for axis in self._axes(world):
                ranks = axis_groups(world.degrees, axis)
                figures = self._measured(axis, ranks, world, timedelta(seconds=job.parallel.mesh().timeout_s), show)
                measurement = Measurement(
                    device=torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
                    backend=_backend(world),
                    processes=len(ranks[0]),
                    devices_per_node=max(Counter(nodes[rank] for group in ranks[:1] for rank in group).values()),
                    collectives={
                        name: Speed(found["latency_s"], found["bus_bandwidth_bytes_per_s"]) for name, found in figures.items()
                    },
                )
                axes[axis] = {**measurement.to_plain(), "collectives": figures}
                if folder is not None and world.rank == 0:
                    _write(folder / f"communication_{axis}.yaml", measurement)
        return {"communication": axes, "table": "\n".join(lines)}

    def _axes(self, world: World) -> list[str]:
        if self.spec.axis is not Axis.all:
            return [self.spec.axis.name]
        return ["world", *(axis for axis in (*AXES, "ep") if world.degrees[axis] > 1)]

    def _insist_on_room(self, world: World) -> None:
        """Raise the same UserError in every process if one of them lacks memory for the largest message."""
        sharing = 1 if world.device.type == "cuda" else world.local_size
        room = min(world.gather(free_bytes(world.device) // sharing)) // BUFFERS
        if self.spec.max_bytes > room:
            raise UserError(
                f"stage.max_bytes={self.spec.max_bytes}: a message of that size needs {BUFFERS} times its memory in each "
                f"process, and there is room for {room} bytes: try stage.max_bytes={2 ** max(0, room.bit_length() - 1)}"
            )

    def _measured(
        self, axis: str, ranks: list[list[int]], world: World, timeout: timedelta, show: Callable[[str], None]
    ) -> dict[str, dict[str, Any]]:
        """Figures of each operation along an axis, by name."""
        group, _ = dist.new_subgroups_by_enumeration(ranks, timeout=timeout)  # type: ignore[no-untyped-call]
        assert group is not None
        size, figures = group.size(), {}
        several = f" ({len(ranks)} groups at once)" if len(ranks) > 1 else ""
        show(f"{axis}: {size} processes{several}, {_backend(world)}")
        show(COLUMNS.format("operation", "bytes", "time", "spread", "algorithm", "bus"))
        for name, operation in OPERATIONS.items():
            bus, points = operation.bus(size), []
            for wanted in message_sizes(self.spec.min_bytes, self.spec.max_bytes, self.spec.factor):
                points.append(measure(name, wanted, group, world.device, self.spec.warm_up, self.spec.repeats))
                show(_row(name, points[-1], bus))
            fitted = fit(points)
            show(f"{name}: latency {_time(fitted.latency)}, bus bandwidth {_rate(fitted.bandwidth * bus)} (fit)\n")
            figures[name] = {
                "latency_s": fitted.latency,
                "bus_bandwidth_bytes_per_s": fitted.bandwidth * bus,
                "points": [
                    {
                        "bytes": point.size,
                        "median_s": point.seconds,
                        "lowest_s": point.lowest,
                        "highest_s": point.highest,
                        "algorithm_bandwidth_bytes_per_s": point.size / point.seconds,
                        "bus_bandwidth_bytes_per_s": bus * point.size / point.seconds,
                    }
                    for point in points
                ],
            }
        return figures


def _write(path: Path, measurement: Measurement) -> None:
    try:
        path.write_text(yaml.safe_dump(measurement.to_plain(), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _backend(world: World) -> str:
    """Which library carries tensors of the job's device."""
    return str(dist.get_backend_config()).split(f"{world.device.type}:")[-1].split(",")[0]


def _row(name: str, point: Point, bus: float) -> str:
    rate = point.size / point.seconds
    spread = f"{_time(point.lowest)} - {_time(point.highest)}"
    return COLUMNS.format(name, f"{point.size:,}", _time(point.seconds), spread, _rate(rate), _rate(rate * bus))


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _rate(rate: float) -> str:
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6)):
        if rate >= size:
            return f"{rate / size:.3g} {unit}"
    return f"{rate / 1e3:.3g} kB/s"
