"""How fast the processes of a job talk: time of each collective operation by message size, bandwidths, a fitted latency.

Sizes, algorithm and bus bandwidth are those of nccl-tests (doc/PERFORMANCE.md there). With n processes and S bytes in time t,
the algorithm bandwidth is S / t, and the bus bandwidth is that times the share of S that each process must send whatever the
algorithm, so that it can be compared with the link's own figure:

| operation | S | bus / algorithm |
|---|---|---|
| all-reduce | the tensor | 2 (n - 1) / n |
| all-gather | the whole result | (n - 1) / n |
| reduce-scatter | the whole input | (n - 1) / n |
| all-to-all | the whole input | (n - 1) / n |
| send (each to the next, all at once; their sendrecv) | what one sends | 1 |

A sample is the mean time of operations one after another (one alone if it is long), by the slowest process of the slowest group. The fit is
t = latency + S / bandwidth (Hockney 1994), with relative errors squared, so that small messages count as much as large ones.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from llmfactory.parallel.mesh import AXES

ELEMENT = 4
"""Bytes of a number: float32, as in nccl-tests."""
SAMPLE = 1e-3
"""Seconds that a sample takes at least, if `MOST_CALLS` are enough: a clock and a barrier cost some microseconds."""
MOST_CALLS = 20
"""Operations of one sample at most, nccl-tests' own number."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A collective operation on a message of S bytes."""

    bus: Callable[[int], float]
    """Bus bandwidth by algorithm bandwidth, of n processes."""
    parts: tuple[bool, bool]
    """Whether the input and the output of a process are an n-th of the message only."""
    call: Callable[[Tensor, Tensor, dist.ProcessGroup], None]
    """(output, input, group)."""


# torch 2.13 renames two operations and warns of the old names, which are the only ones of torch 2.11
_gather_pieces = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_sum = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def _all_reduce(out: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    dist.all_reduce(out, group=group)


def _all_gather(out: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    _gather_pieces(out, x, group=group)


def _reduce_scatter(out: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    _scatter_sum(out, x, group=group)


def _all_to_all(out: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    dist.all_to_all_single(out, x, group=group)


def _send(out: Tensor, x: Tensor, group: dist.ProcessGroup) -> None:
    rank, size = group.rank(), group.size()
    to, source = (dist.get_global_rank(group, (rank + step) % size) for step in (1, -1))
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, to, group), dist.P2POp(dist.irecv, out, source, group)]):
        work.wait()


OPERATIONS: dict[str, Operation] = {
    "all_reduce": Operation(lambda n: 2 * (n - 1) / n, (False, False), _all_reduce),
    "all_gather": Operation(lambda n: (n - 1) / n, (True, False), _all_gather),
    "reduce_scatter": Operation(lambda n: (n - 1) / n, (False, True), _reduce_scatter),
    "all_to_all": Operation(lambda n: (n - 1) / n, (False, False), _all_to_all),
    "send": Operation(lambda n: 1.0, (False, False), _send),
}
BUFFERS = 3
"""Tensors of a message's size that one process holds at most: input, output, and the library's own copy."""


@dataclass(frozen=True, slots=True)
class Point:
    """One operation at one size."""

    size: int
    """Bytes of the message, S above."""
    seconds: float
    """Median over the samples."""
    lowest: float
    """Seconds of the fastest sample."""
    highest: float
    """Seconds of the slowest sample."""


@dataclass(frozen=True, slots=True)
class Fit:
    """t = latency + S / bandwidth."""

    latency: float
    """Seconds."""
    bandwidth: float
    """Bytes of the message a second, without the latency: the algorithm bandwidth of an endless message."""


def axis_groups(degrees: Mapping[str, int], axis: str) -> list[list[int]]:
    """The ranks of each group along an axis of the mesh, or `world`. `degrees` has every axis, and `ep`."""
    sizes = [degrees[name] for name in AXES]
    ranks = torch.arange(math.prod(sizes))
    if axis == "world":
        return [ranks.tolist()]
    if axis == "ep":  # dealt from the data- and context-parallel processes, the nearest first
        cut = ranks.view(degrees["pp"], -1, degrees["ep"], degrees["tp"]).movedim(2, -1)
    else:
        cut = ranks.view(sizes).movedim(AXES.index(axis), -1)
    groups: list[list[int]] = cut.reshape(-1, degrees[axis]).tolist()
    return groups


def message_sizes(low: int, high: int, factor: int) -> list[int]:
    """Bytes from `low` to `high`, each `factor` times the one before; `high` is the last."""
    sizes = []
    while low < high:
        sizes.append(low)
        low *= factor
    return [*sizes, high]


def measure(name: str, size: int, group: dist.ProcessGroup, device: torch.device, warm_up: int, repeats: int) -> Point:
    """Time one operation; called by every process, each with its group of the axis. All get the same answer.

    The message is `size` bytes, rounded up so that it can be cut into equal pieces.
    """
    operation, n = OPERATIONS[name], group.size()
    numbers = math.ceil(size / (ELEMENT * n)) * n
    x, out = (torch.zeros(numbers // n if part else numbers, device=device) for part in operation.parts)

    def samples(count: int, calls: int) -> list[float]:
        return _slowest([_sample(operation, out, x, group, device, calls) for _ in range(count)])

    first = samples(warm_up, calls=1)
    times = samples(repeats, calls=min(MOST_CALLS, math.ceil(SAMPLE / min(first))))
    return Point(numbers * ELEMENT, statistics.median(times), min(times), max(times))


def _slowest(seconds: list[float]) -> list[float]:
    """Of each sample, the time of the process that took longest."""
    times = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return times.tolist()


def _sample(operation: Operation, out: Tensor, x: Tensor, group: dist.ProcessGroup, device: torch.device, calls: int) -> float:
    """Seconds of one operation by this process's clock, from when all processes are there."""
    dist.all_reduce(torch.zeros(1))  # a barrier on the CPU, whatever the backend of GPU tensors
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        operation.call(out, x, group)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / calls


def fit(points: Sequence[Point]) -> Fit:
    """Latency and bandwidth that explain the medians best, with squares of relative errors; neither below zero.

    With t the time and S the size, minimizes sum (a + b S - t)^2 / t^2 over a, b >= 0. Where larger messages took no longer, the bandwidth is the largest one's:
    it is at least that.
    """
    rows = torch.tensor([[1 / p.seconds, p.size / p.seconds] for p in points], dtype=torch.float64)
    scale = rows.norm(dim=0)
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    a, b = (torch.linalg.lstsq(rows / scale, ones).solution[:, 0] / scale).tolist()
    if len(points) == 1 or a < 0:  # all of it is bandwidth
        a, b = 0.0, (rows[:, 1].sum() / rows[:, 1].square().sum()).item()
    elif b <= 0:
        a, b = (rows[:, 0].sum() / rows[:, 0].square().sum()).item(), 0.0
    largest = max(points, key=lambda point: point.size)
    return Fit(a, 1 / b if b else largest.size / largest.seconds)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that is free, in bytes; of a CPU, what the system and the process's control group leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    info = Path("/proc/meminfo")
    if info.is_file():  # counts what the system would give up, such as cached files
        free = next(int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free
