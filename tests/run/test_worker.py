"""The worker takes plain data and gives plain data; what it changes in the process is put back."""

from __future__ import annotations

import json
import os

import pytest
import torch
from toy_job import toy_job

from llmfactory.config.plain import to_plain
from llmfactory.core.errors import UserError
from llmfactory.launch.spec import Local
from llmfactory.parallel.spec import Mesh
from llmfactory.run import worker
from llmfactory.run.folder import read_result, write_config
from llmfactory.run.spec import Device
from llmfactory.run.worker import insist_on_a_device_each, main, work


def test_plain_data_in_and_out_and_the_process_is_left_as_it_was(tmp_path):
    job = toy_job(tmp_path, name="r", output_dir=str(tmp_path), trainer__max_steps=2, trainer__threads=2)
    config = json.loads(json.dumps(to_plain(job)))  # it may come from any file
    (tmp_path / "r").mkdir()
    write_config(tmp_path / "r", config, [])
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    result = work(config)
    assert json.loads(json.dumps(result)) == result
    assert result["environment"]["threads"] == 2
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (tmp_path / "r" / "log.txt").read_text().startswith("preparing data")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A run folder with its config, and this process as torch's launcher starts one."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(worker, "terminate_with_parent", lambda: None)
    job = toy_job(tmp_path, name="r", output_dir=str(tmp_path), trainer__max_steps=2)
    (tmp_path / "r").mkdir()
    write_config(tmp_path / "r", to_plain(job), [])
    return tmp_path / "r" / "config.yaml"


def test_a_job_starts_from_its_saved_config(saved, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "8")  # of the one task on each machine: not for Lightning
    assert main([str(saved)]) == 0
    assert read_result(saved.parent)["status"] == "finished"
    assert (saved.parent / "logs" / "rank_0.txt").exists()
    assert "SLURM_NTASKS" not in os.environ


def test_another_number_of_processes_than_the_config_s(saved, monkeypatch, capsys):
    job = toy_job(saved.parents[1], name="r", output_dir=str(saved.parents[1]), launch=Local(), parallel=Mesh(dp_replicate=2))
    write_config(saved.parent, to_plain(job), [])
    assert main([str(saved)]) == 1
    assert f"{saved} is made for 2 processes, but 1 were started" in capsys.readouterr().err
    assert read_result(saved.parent)["status"] == "failed"


def test_a_config_that_was_moved_away_from_its_run(saved, capsys):
    moved = saved.parents[1] / "other" / "config.yaml"
    moved.parent.mkdir()
    moved.write_text(saved.read_text())
    assert main([str(moved)]) == 1
    assert "start it in the directory where its command was given" in capsys.readouterr().err
    assert not (saved.parent / "metrics.csv").exists()


def test_the_worker_s_own_line(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert main(["config.yaml"]) == 2
    assert main([]) == 2
    assert "this is started by torch's launcher" in capsys.readouterr().err


@pytest.mark.parametrize(("gpus", "processes", "fits"), [(1, 2, False), (2, 2, True), (8, 2, True)])
def test_every_process_has_a_gpu_of_its_own(tmp_path, monkeypatch, gpus, processes, fits):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    insist_on_a_device_each(toy_job(tmp_path))  # on the CPU
    job = toy_job(tmp_path, trainer__device=Device.auto)
    if fits:
        insist_on_a_device_each(job)
        return
    with pytest.raises(UserError, match=r"2 processes were started on this machine, which has 1 GPU: launch.processes=1"):
        insist_on_a_device_each(job)
    with pytest.raises(UserError, match=r"launch.processes=1"):
        work(to_plain(job))
