"""stage=bench_comm: what is measured, what is kept, what is refused."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import pool
from toy_job import toy_job

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.parallel import bench
from llmfactory.parallel.mesh import World
from llmfactory.parallel.plan.measured import read_measurement
from llmfactory.parallel.spec import Mesh
from llmfactory.run.report import bandwidths
from llmfactory.stage.bench_comm import BenchCommJob
from llmfactory.stage.spec import Axis, BenchComm

QUICK = {"min_bytes": 64, "max_bytes": 200, "factor": 2, "warm_up": 1, "repeats": 2}


def run(folder: Path, parallel: Mesh, per_node: int, fields: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Results, and how many operations each sample had; `per_node` processes on each (pretended) machine."""
    os.environ["LOCAL_WORLD_SIZE"] = str(per_node)
    calls, sample = [], bench._sample

    def counted(*arguments: Any) -> float:
        calls.append(arguments[-1])
        return sample(*arguments)

    bench._sample = counted
    job = toy_job(folder, parallel=parallel, stage=BenchComm(**{**QUICK, **fields}))
    return job.stage.build().run(job, folder), calls


@pytest.mark.dist
def test_every_field_does_what_it_says(tmp_path: Path) -> None:
    results = pool.run(2, run, tmp_path, Mesh(tp=2), 2, {}, alone=True)
    (axis, found), samples = *results[0][0]["communication"].items(), results[0][1]
    assert axis == "world"
    assert (found["processes"], found["devices_per_node"], found["backend"], found["device"]) == (2, 2, "gloo", "cpu")
    assert len(found["collectives"]) == 5
    for name, bus in (("all_reduce", 1.0), ("all_gather", 0.5), ("send", 1.0)):
        points = found["collectives"][name]["points"]
        assert [point["bytes"] for point in points] == [64, 128, 200]
        for point in points:
            rate = point["bytes"] / point["median_s"]
            assert point["algorithm_bandwidth_bytes_per_s"] == pytest.approx(rate)
            assert point["bus_bandwidth_bytes_per_s"] == pytest.approx(bus * rate)
            assert point["lowest_s"] <= point["median_s"] <= point["highest_s"]
    assert len(samples) == 5 * 3 * (1 + 2), "operations x sizes x (warm-up + repeats)"
    kept = read_measurement(tmp_path / "communication_world.yaml")
    assert (kept.processes, kept.devices_per_node, kept.crosses_nodes) == (2, 2, False)
    for name, one in found["collectives"].items():
        assert kept.collectives[name].latency_s == one["latency_s"]
        assert kept.collectives[name].bandwidth_bytes_per_s == one["bus_bandwidth_bytes_per_s"]
    for line in ("world: 2 processes, gloo", "all_gather", "128", "send: latency"):
        assert line in results[0][0]["table"]
    assert results[1][0]["table"] == "", "one process prints"
    (plot,) = bandwidths(results[0][0]["communication"])
    assert "Bus bandwidth, world: 2 processes" in plot
    assert bandwidths(None) == []


@pytest.mark.dist
def test_axes(tmp_path: Path) -> None:
    """Groups along an axis talk all at once; `all` takes each axis of several processes after the world."""
    layout, once = Mesh(dp_replicate=2, tp=2), {"max_bytes": 64, "repeats": 1}
    found = pool.run(4, run, tmp_path, layout, 2, {"axis": Axis.all, **once}, alone=True)[0][0]["communication"]
    sizes = {axis: (one["processes"], one["devices_per_node"]) for axis, one in found.items()}
    assert sizes == {"world": (4, 2), "dp_replicate": (2, 1), "tp": (2, 2)}
    crossing = {axis: read_measurement(tmp_path / f"communication_{axis}.yaml").crosses_nodes for axis in sizes}
    assert crossing == {"world": True, "dp_replicate": True, "tp": False}
    (only,) = pool.run(4, run, tmp_path, layout, 4, {"axis": Axis.tp, **once}, alone=True)[0][0]["communication"].items()
    assert only[0] == "tp"
    for point in only[1]["collectives"]["all_reduce"]["points"]:
        assert point["bus_bandwidth_bytes_per_s"] == pytest.approx(point["bytes"] / point["median_s"])  # 2 (n - 1) / n of n = 2


def test_a_message_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of one machine share its memory: input, output and the library's copy of each."""
    monkeypatch.setattr("llmfactory.stage.bench_comm.free_bytes", lambda device: 6000)
    shared = World(torch.device("cpu"), local_size=2)
    BenchCommJob(BenchComm(min_bytes=1, max_bytes=1000))._insist_on_room(shared)
    with pytest.raises(UserError, match=r"stage.max_bytes=1001: .* there is room for 1000 bytes: try stage.max_bytes=512"):
        BenchCommJob(BenchComm(min_bytes=1, max_bytes=1001))._insist_on_room(shared)


@pytest.mark.parametrize(
    ("fields", "path", "repair"),
    [
        ({"min_bytes": 0}, "min_bytes", "min_bytes=1"),
        ({"min_bytes": -5}, "min_bytes", "min_bytes=1"),
        ({"max_bytes": 100}, "max_bytes", "max_bytes=1024"),
        ({"factor": 1}, "factor", "factor=2"),
        ({"warm_up": 0}, "warm_up", "warm_up=1"),
        ({"repeats": 0}, "repeats", "repeats=1"),
    ],
)
def test_bad_values(fields: dict[str, Any], path: str, repair: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BenchComm(**fields)
    (problem,) = caught.value.problems
    assert (problem.path, problem.repair) == (path, repair)
    name, _, value = repair.partition("=")
    replace(BenchComm(), **{**{k: v for k, v in fields.items() if k != name}, name: yaml.safe_load(value)})
