"""Sizes, formulas and fits of the communication benchmark, and that each operation moves what it is named after."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import pool

from llmfactory.parallel import bench
from llmfactory.parallel.bench import OPERATIONS, Fit, Point, axis_groups, fit, free_bytes, measure, message_sizes
from llmfactory.parallel.mesh import AXES


def test_sizes() -> None:
    assert message_sizes(10, 1000, 4) == [10, 40, 160, 640, 1000]
    assert message_sizes(4, 16, 2) == [4, 8, 16]
    assert message_sizes(7, 7, 2) == [7]


def test_bus_bandwidth_by_algorithm_bandwidth() -> None:
    """The table of nccl-tests' PERFORMANCE.md."""
    assert {name: operation.bus(4) for name, operation in OPERATIONS.items()} == {
        "all_reduce": 1.5,
        "all_gather": 0.75,
        "reduce_scatter": 0.75,
        "all_to_all": 0.75,
        "send": 1.0,
    }


def points(*times: tuple[int, float]) -> list[Point]:
    return [Point(size, seconds, seconds, seconds) for size, seconds in times]


def test_the_fit_finds_latency_and_bandwidth() -> None:
    exact = fit(points(*((size, 2e-5 + size / 3e9) for size in message_sizes(1024, 2**28, 4))))
    assert exact.latency == pytest.approx(2e-5, rel=1e-9)
    assert exact.bandwidth == pytest.approx(3e9, rel=1e-9)
    # Relative errors: a tenth more on the largest message does not drown the smallest's latency.
    noisy = fit(points(*((size, (2e-5 + size / 3e9) * (1.1 if size == 2**28 else 1)) for size in message_sizes(1024, 2**28, 4))))
    assert noisy.latency == pytest.approx(2e-5, rel=0.02)
    assert noisy.bandwidth == pytest.approx(3e9, rel=0.1)


def test_the_fit_stays_above_zero() -> None:
    assert fit(points((1000, 2.0), (2000, 1.0))) == Fit(pytest.approx(1.2), 2000.0)
    below = fit(points((1000, 1.0), (3000, 4.0)))
    assert below.latency == 0.0
    # b minimizes (1000 b - 1)^2 + (750 b - 1)^2
    assert below.bandwidth == pytest.approx((1000**2 + 750**2) / 1750)
    assert fit(points((1000, 2.0))) == Fit(0.0, pytest.approx(500.0))


def test_groups_along_an_axis() -> None:
    """Tensor neighbours are next to each other, pipeline neighbours farthest apart; experts go over data and context."""
    degrees = {"pp": 2, "dp_replicate": 1, "dp_shard": 2, "cp": 2, "tp": 2, "ep": 2}
    assert axis_groups(degrees, "world") == [list(range(16))]
    assert axis_groups(degrees, "tp") == [[rank, rank + 1] for rank in range(0, 16, 2)]
    assert axis_groups(degrees, "pp") == [[rank, rank + 8] for rank in range(8)]
    assert axis_groups(degrees, "cp")[:3] == [[0, 2], [1, 3], [4, 6]]
    assert axis_groups(degrees, "dp_shard")[:5] == [[0, 4], [1, 5], [2, 6], [3, 7], [8, 12]]
    assert axis_groups({**degrees, "ep": 4}, "ep") == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    for axis in (*AXES, "ep"):
        assert sorted(rank for group in axis_groups(degrees, axis) for rank in group) == list(range(16))


def agrees_with_the_mesh() -> None:
    """The groups are those that the job's own layout makes."""
    from llmfactory.parallel.mesh import open_world
    from llmfactory.parallel.spec import Mesh

    with open_world(Mesh(dp_shard=2, tp=2, ep=2), "cpu") as world:
        for axis, name in (("tp", "tp"), ("dp_shard", "data"), ("ep", "ep")):
            (mine,) = [group for group in axis_groups(world.degrees, axis) if world.rank in group]
            assert dist.get_process_group_ranks(world.groups[name]) == mine


@pytest.mark.dist
def test_groups_are_those_of_the_layout() -> None:
    pool.run(4, agrees_with_the_mesh)


def moved() -> dict[str, list[float]]:
    """What arrives with three processes when the input counts 0, 1, ... upwards from 10 times the rank."""
    group, rank = dist.group.WORLD, dist.get_rank()
    found = {}
    for name, operation in OPERATIONS.items():
        whole = 6
        x, out = (torch.zeros(whole // 3 if part else whole) for part in operation.parts)
        x += 10 * rank + torch.arange(len(x))
        if name == "all_reduce":
            out.copy_(x)
        operation.call(out, x, group)
        found[name] = out.tolist()
    return found


def timed() -> Point:
    """The slowest process counts: rank 1 sleeps in each operation."""
    import time

    dawdling = bench.Operation(lambda n: 1.0, (False, True), lambda out, x, group: time.sleep(0.02 * group.rank()))
    bench.OPERATIONS["sleep"] = dawdling
    return measure("sleep", 1001, dist.group.WORLD, torch.device("cpu"), warm_up=1, repeats=3)


@pytest.mark.dist
def test_each_operation_moves_what_it_says() -> None:
    for rank, found in enumerate(pool.run(3, moved)):
        assert found["all_reduce"] == [30 + 3 * k for k in range(6)]
        assert found["all_gather"] == [0, 1, 10, 11, 20, 21]
        assert found["reduce_scatter"] == [30 + 3 * k for k in (2 * rank, 2 * rank + 1)]
        assert found["all_to_all"] == [10 * source + 2 * rank + k for source in range(3) for k in range(2)]
        assert found["send"] == [10 * ((rank - 1) % 3) + k for k in range(6)]


@pytest.mark.dist
def test_the_slowest_process_counts() -> None:
    for point in pool.run(2, timed, alone=True):
        assert point.size == 1008, "rounded up to two equal pieces of whole numbers"
        assert point.lowest >= 0.02
        assert point.lowest <= point.seconds <= point.highest


def test_free_memory_is_told_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    now = free_bytes(torch.device("cpu"))
    assert 2**20 < now < 2**50
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 5 kB\n", "/sys/fs/cgroup/memory.max": "4000\n"}
    files["/sys/fs/cgroup/memory.current"] = "1000\n"
    monkeypatch.setattr(Path, "is_file", lambda self: str(self) in files)
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: files[str(self)])
    assert free_bytes(torch.device("cpu")) == 3000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_bytes(torch.device("cpu")) == 5 * 1024
