"""What surrounds a process of a job."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from llmfactory.core.errors import UserError
from llmfactory.launch import rank
from llmfactory.launch.failure import saved_failures
from llmfactory.launch.rank import rank_of_job
from llmfactory.launch.watchdog import Peers

CONFIG = {"parallel": {"timeout_s": 10.0}}


class Shared(dist.HashStore):
    def clone(self):
        return self


@pytest.fixture
def store(monkeypatch, tmp_path):
    """This process is rank 0 of two, on two machines; the other one's part is written by the test."""
    here = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_TEMP_FILE"):
        monkeypatch.delenv(name, raising=False)
    shared = Shared()
    monkeypatch.setattr(rank, "join_peers", lambda timeout_s: Peers(shared, 0, 2))
    monkeypatch.setattr(rank, "HEARD_S", 0.0)
    shared.set("ended/1", "")
    shared.set("agreement/1", '{"host": "other", "other": {}}')
    yield shared
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_TEMP_FILE"):
        os.environ.pop(name, None)


def test_nothing_begins_where_machines_do_not_agree(store, tmp_path):
    store.set("agreement/1", '{"host": "other", "other": {"optim.lr": [0.1, 0.2]}}')
    with pytest.raises(UserError, match=r"optim.lr: 0.1 on .*, 0.2 on other"), rank_of_job(CONFIG, tmp_path, tmp_path / "logs"):
        pytest.fail("it began")
    assert "optim.lr" in saved_failures(tmp_path)[0].message
    assert store.check(["failure"])


def test_processes_of_one_machine_need_not_agree(store, tmp_path, monkeypatch):
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    store.delete_key("agreement/1")
    with rank_of_job(CONFIG, tmp_path, None):
        pass
    assert store.check(["ended/0"])


def test_an_error_is_kept_and_told(store, tmp_path):
    with pytest.raises(ZeroDivisionError), rank_of_job(CONFIG, tmp_path / "errors", tmp_path / "logs"):
        raise ZeroDivisionError("by accident")
    (failure,) = saved_failures(tmp_path / "errors")
    assert failure.log == str(tmp_path / "logs" / "rank_0.txt")
    assert "by accident" in failure.trace
    log = (tmp_path / "logs" / "rank_0.txt").read_text()
    assert log.startswith("--- ")
    assert "ZeroDivisionError: by accident" in log
    assert "by accident" in store.get("failure").decode()


def test_a_consequence_makes_room_for_its_cause(store, tmp_path):
    from llmfactory.launch.failure import Failure

    cause = Failure(rank=1, host="other", time=2.0, log=None, follows=False, problems=None, message="the disk is full", trace="")
    with pytest.raises(RuntimeError, match="Connection closed"), rank_of_job(CONFIG, tmp_path, None):
        store.set("failure", cause.as_text())
        raise RuntimeError("Connection closed by peer")
    assert [one.rank for one in saved_failures(tmp_path)] == [1, 0]
    assert saved_failures(tmp_path)[1].follows


def test_nccl_s_own_record_lies_beside_the_logs(store, tmp_path):
    with rank_of_job(CONFIG, tmp_path, tmp_path / "logs"):
        assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/logs/flight_recorder_"
        assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
        assert int(os.environ["TORCH_FR_BUFFER_SIZE"]) > 0


def test_torch_s_launcher_finds_the_error_too(store, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(UserError), rank_of_job(CONFIG, tmp_path, None):
        raise UserError("the disk is full")
    assert "the disk is full" in (tmp_path / "error.json").read_text()
