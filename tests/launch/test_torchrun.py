"""launch=torchrun: the line for each machine, and two machines that are one job (both are this one, by its loopback)."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import local_workers
import pytest

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.launch import agent
from llmfactory.launch.spec import Torchrun
from llmfactory.launch.torchrun import line

OTHER = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import local_workers
from llmfactory.launch.spec import Torchrun
spec, config, folder = json.loads(sys.argv[3])
print(Torchrun(**spec).run(getattr(local_workers, config["worker"]), config, Path(folder)))
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def on_two_machines(folder: Path, config: dict, **fields):
    """The job's outcome on the first machine, and what the second one printed."""
    (folder / "logs").mkdir()
    fields = {
        "nodes": 2,
        "processes": 1,
        "endpoint": f"127.0.0.1:{free_port()}",
        "start": True,
        "join_timeout_s": 100,
        **fields,
    }
    words = json.dumps([{**fields, "node_rank": 1}, config, str(folder)])
    places = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    command = [sys.executable, "-c", OTHER, *places, words]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        return Torchrun(**fields, node_rank=0).run(getattr(local_workers, config["worker"]), config, folder), other.communicate(
            timeout=100
        )
    except UserError as error:
        return error, other.communicate(timeout=100)
    finally:
        other.kill()


def test_the_line_says_it_all(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = Torchrun(nodes=3, processes=4, endpoint="node0:29400", max_restarts=2, join_timeout_s=44)
    assert spec.run(local_workers.speak, {}, tmp_path) is None
    printed = [text for text in capsys.readouterr().out.splitlines() if text.startswith("  ")]
    assert len(printed) == 1
    moved, checked, start = printed[0].strip().split(" && ")
    assert moved == f"cd {tmp_path}"
    assert checked.endswith("-m llmfactory.launch.port node0:29400")
    words = shlex.split(start)
    assert words[:2] == ["env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"]
    assert Path(words[2]).name == "torchrun"
    wanted = {"--nnodes=3", "--nproc-per-node=4", "--rdzv-backend=c10d", "--rdzv-endpoint=node0:29400", "--max-restarts=2"}
    assert wanted | {"--rdzv-conf=join_timeout=44", f"--rdzv-id={tmp_path.name}"} <= set(words)
    assert words[-3:] == ["-m", "llmfactory.run.worker", f"{tmp_path}/config.yaml"]


def test_machines_that_are_numbered_have_a_line_each(tmp_path, capsys):
    spec = Torchrun(nodes=2, processes=4, endpoint="node0:29400", node_rank=1)
    assert spec.run(local_workers.speak, {}, tmp_path) is None
    printed = [text for text in capsys.readouterr().out.splitlines() if text.startswith("  ")]
    assert [f"--node-rank={number}" in text for number, text in enumerate(printed)] == [True, True]
    assert all("--master-addr=node0 --master-port=29400" in text for text in printed)


def test_torch_takes_the_line(tmp_path):
    from torch.distributed.run import parse_args

    for number in (None, 1):
        words = line(Torchrun(nodes=2, processes=4, endpoint="node0:29400"), "node0:29400", tmp_path, node_rank=number)
        parse_args(words[3:])


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"endpoint": "node0"}, "endpoint"),
        ({"endpoint": "node0:0"}, "endpoint"),
        ({"endpoint": ":29500"}, "endpoint"),
        ({"node_rank": 2}, "node_rank"),
        ({"node_rank": 0, "max_restarts": 1}, "max_restarts"),
        ({"join_timeout_s": 0}, "join_timeout_s"),
        ({"processes": 0}, "processes"),
    ],
)
def test_what_cannot_be(wrong, path):
    with pytest.raises(ConfigError) as raised:
        Torchrun(**{"nodes": 2, "endpoint": "node0:29400", **wrong})
    assert [problem.path for problem in raised.value.problems] == [path]


def test_a_port_in_use_is_told_before_anything_starts(tmp_path, monkeypatch):
    from llmfactory.launch import port

    monkeypatch.setattr(port, "PROBE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        spec = Torchrun(nodes=2, processes=1, endpoint=f"127.0.0.1:{stranger.getsockname()[1]}", start=True)
        with pytest.raises(UserError, match="is used by another program"):
            spec.run(local_workers.speak, {}, tmp_path)


@pytest.mark.timeout(120)
def test_a_machine_that_does_not_come(tmp_path):
    spec = Torchrun(nodes=2, processes=1, endpoint=f"127.0.0.1:{free_port()}", start=True, join_timeout_s=1)
    with pytest.raises(UserError, match=r"the 2 machines of the job have not met at 127.0.0.1:\d+ within 1 s"):
        spec.run(local_workers.speak, {}, tmp_path)


@pytest.mark.dist
def test_two_machines_are_one_job(tmp_path, capfd):
    config = {"worker": "speak", "folder": str(tmp_path), "parallel": {"timeout_s": 60.0}}
    result, (said, _) = on_two_machines(tmp_path, config)
    assert result == {"rank": 0, "node": 0, "world": 2}
    assert said.splitlines()[-1] == "{'rank': 0, 'node': 0, 'world': 2}"  # from the run folder
    assert "on each of the others run:\n" in capfd.readouterr().out
    assert "python of rank 1" in (tmp_path / "logs" / "rank_1.txt").read_text()


@pytest.mark.dist
def test_a_failure_on_one_machine_is_told_on_all(tmp_path, monkeypatch):
    config = {"worker": "speak", "folder": str(tmp_path), "fail": True, "parallel": {"timeout_s": 200.0}}
    error, (said, _) = on_two_machines(tmp_path, config)
    assert str(error) == f"the disk is full\n(rank 1 on {socket.gethostname()}; its log: {tmp_path}/logs/rank_1.txt)"
    assert f"UserError: {error}" in said
    assert agent.LOGS == "logs"
