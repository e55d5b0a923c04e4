"""launch=ray: what the cluster is asked for, and a job on a local one (where Ray is installed)."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from jobs import curve, overrides

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.launch import ray as launcher
from llmfactory.launch.ray import run_line, run_ray
from llmfactory.launch.spec import Ray
from llmfactory.run.start import start

TRAINING = {"stage": {"type": "pretrain"}}
CPU, GPU = ({**TRAINING, "trainer": {"device": device}} for device in ("cpu", "auto"))


class Cluster:
    """Stands for Ray: keeps what it was asked for, runs tasks in place."""

    def __init__(self, room: bool = True) -> None:
        self.room, self.said, self.tasks, self.removed = room, {}, [], 0
        self.util = SimpleNamespace(
            placement_group=self.placement_group, remove_placement_group=self.remove, get_node_ip_address=lambda: "10.0.0.7"
        )
        self.exceptions = SimpleNamespace(RayError=ArithmeticError)

    def PlacementGroupSchedulingStrategy(self, group, placement_group_bundle_index):
        return placement_group_bundle_index

    def is_initialized(self):
        return False

    def init(self, address, include_dashboard):
        if address == "nowhere":
            raise ConnectionError("Could not find any running Ray instance.\nMore")
        self.said["address"] = address

    def shutdown(self):
        self.said["shutdown"] = True

    def placement_group(self, bundles, strategy):
        self.said |= {"bundles": bundles, "strategy": strategy}
        return self

    def wait(self, what, num_returns=1, timeout=None):
        if not isinstance(what, list):  # of the placement group
            self.said["patience"] = what
            return self.room
        return what[:1], what[1:]

    def remove(self, group):
        self.removed += 1

    def cluster_resources(self):
        return {"CPU": 2.0, "memory": 1e9}

    def nodes(self):
        return [{}]

    def remote(self, function):
        def options(**asked):
            def run(*arguments):
                self.tasks.append((function.__name__, asked, arguments))
                return function(*arguments) if function.__name__ == "free_endpoint" else 0

            return SimpleNamespace(remote=run)

        return SimpleNamespace(options=options)

    def get(self, value):
        return value


@pytest.fixture
def cluster(monkeypatch):
    one = Cluster()
    monkeypatch.setitem(sys.modules, "ray", one)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", one)
    return one


def folder_with_result(folder):
    (folder / "logs").mkdir()
    (folder / "result.json").write_text('{"status": "finished"}')
    return folder


def test_what_ray_is_asked_for(cluster, tmp_path):
    spec = Ray(nodes=2, processes=3, cpus=12, address="head:6379", max_restarts=1, join_timeout_s=33)
    assert run_ray(spec, GPU, folder_with_result(tmp_path)) == {"status": "finished"}
    assert cluster.said["address"] == "head:6379"
    assert cluster.said["bundles"] == [{"CPU": 12.0, "GPU": 3.0}] * 2
    assert cluster.said["strategy"] == "STRICT_SPREAD"
    assert cluster.said["patience"] == 33
    assert cluster.said["shutdown"]
    assert cluster.removed == 1
    name, asked, (alone,) = cluster.tasks[0]
    assert (name, alone, asked["num_cpus"], asked["num_gpus"], asked["max_retries"]) == ("free_endpoint", False, 12, 3, 0)
    lines = [task for task in cluster.tasks if task[0] == "run_line"]
    assert [asked["scheduling_strategy"] for _, asked, _ in lines] == [0, 1]
    words, _, threads = lines[0][2]
    assert lines[1][2] == lines[0][2]
    assert threads == 4
    assert {"--nnodes=2", "--nproc-per-node=3", "--max-restarts=1", "--rdzv-conf=join_timeout=33"} <= set(words)
    assert any(word.startswith("--rdzv-endpoint=10.0.0.7:") for word in words)


PREPARING = {**GPU, "stage": {"type": "prepare"}}


@pytest.mark.parametrize(
    ("given", "config", "gpus"),
    [({}, CPU, 0), ({"gpus": 1}, CPU, 1), ({"gpus": 0}, GPU, 0), ({}, GPU, 2), ({}, PREPARING, 0), ({"gpus": 1}, PREPARING, 1)],
)
def test_gpus_are_reserved_where_the_job_runs_on_them(cluster, tmp_path, given, config, gpus):
    run_ray(Ray(processes=2, **given), config, folder_with_result(tmp_path))
    assert cluster.said["bundles"][0].get("GPU", 0) == gpus
    assert cluster.said["bundles"][0]["CPU"] == 2


def test_a_cluster_without_room_or_without_an_answer(cluster, tmp_path):
    cluster.room = False
    with pytest.raises(UserError, match=r"no room for 2 machines with .* within 5 s .*; it has 1 with {'CPU': 2.0} together"):
        run_ray(Ray(nodes=2, join_timeout_s=5), CPU, folder_with_result(tmp_path))
    assert cluster.removed == 1
    with pytest.raises(
        UserError, match=r"no Ray cluster answers at launch.address=nowhere: Could not find .*launch.address=local"
    ):
        run_ray(Ray(address="nowhere"), CPU, tmp_path)


def test_without_ray_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"launch=ray needs .* pip install 'llmfactory\[ray\]'"):
        run_ray(Ray(), CPU, tmp_path)


def test_the_launcher_s_exit_code_and_surroundings(tmp_path):
    code = f"import os, sys; open('{tmp_path}/said', 'w').write(os.environ['OMP_NUM_THREADS'] + os.getcwd()); sys.exit(7)"
    assert run_line([sys.executable, "-c", code], str(tmp_path), 3) == 7
    assert (tmp_path / "said").read_text() == f"3{tmp_path}"
    assert launcher.LOGS == "logs"


@pytest.mark.dist
def test_a_job_on_a_local_cluster(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common = overrides(tmp_path)
    alone = start(compose_job([*common, "name=alone"]))
    line = [*common, "name=r", "parallel=ddp", "launch=ray", "launch.address=local", "launch.processes=2"]
    result = start(compose_job(line))
    assert result["held_out_loss"] == pytest.approx(alone["held_out_loss"], rel=1e-9)
    np.testing.assert_allclose(curve(tmp_path / "outputs" / "r"), curve(tmp_path / "outputs" / "alone"), rtol=1e-9)


@pytest.mark.dist
def test_data_are_prepared_by_a_local_cluster(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for number in range(6):
        lines = [f"line {k} of {number % 4}, which says {k * number % 7}" for k in range(40)]
        (tmp_path / f"{number}.txt").write_text("\n\n".join(lines))
    line = [
        "stage=prepare",
        "data=text",
        f"data.source.files=[{tmp_path}/*.txt]",
        "data/clean=[exact,minhash]",
        "data.seq_len=16",
    ]
    line += ["model.vocab_size=300", "trainer.progress=false", f"output_dir={tmp_path}/outputs"]
    alone = start(compose_job([*line, "name=alone", f"data.cache={tmp_path}/alone"]))
    cluster = ["launch=ray", "launch.address=local", "launch.processes=2"]
    shared = start(compose_job([*line, *cluster, "name=shared", f"data.cache={tmp_path}/shared"]))
    assert shared["preparation"] == alone["preparation"]
    assert shared["data"] == alone["data"]
