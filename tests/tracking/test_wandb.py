"""tracking=wandb, offline, for real: one W&B run over a resume, beside metrics.csv, without network."""

from __future__ import annotations

import socket

import pytest
import wandb

from llmfactory.core.errors import UserError
from llmfactory.tracking.spec import Wandb, WandbMode


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Its own home; connections elsewhere than to this machine fail the test."""
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    connect = socket.socket.connect

    def local_only(self, address):
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost"), f"connects to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    folder = tmp_path / "my_run"
    folder.mkdir()
    yield folder
    wandb.teardown()  # ends its service process


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_offline_run_goes_on_under_the_same_id(offline):
    spec = Wandb(mode=WandbMode.offline, project="p", tags=["a", "b"])
    first = spec.build(offline, {"optim": {"lr": 0.1}})
    assert (first.run.project, first.run.name, first.run.tags) == ("p", "my_run", ("a", "b"))
    assert first.run.config["optim"] == {"lr": 0.1}
    first.log(1, {"loss": 2.0})
    first.log(2, {"loss": 1.0})
    first.finish({"held_out_loss": 1.5})
    second = spec.build(offline, {"optim": {"lr": 0.1}})
    assert second.run.id == first.run.id
    second.rewind(1)
    second.log(2, {"loss": 1.25})
    second.finish({"held_out_loss": 1.5})
    assert (offline / "metrics.csv").read_text() == "step,loss\n1,2.0\n2,1.25\n"
    files = list((offline / "wandb").glob(f"offline-run-*-{first.run.id}/*.wandb"))
    assert files
    assert any(b"held_out_loss" in file.read_bytes() for file in files)


def test_settings_reach_the_library(tmp_path, monkeypatch):
    asked = {}

    def refuse(**settings):
        asked.update(settings)
        raise wandb.errors.UsageError("no login")

    monkeypatch.setattr(wandb, "init", refuse)
    for mode in WandbMode:
        with pytest.raises(UserError, match=r"no login .tracking.mode=offline needs no login."):
            Wandb(project="p", entity="team", mode=mode, tags=["a"]).build(tmp_path, {"seed": 1})
        assert (asked["project"], asked["entity"], asked["mode"], asked["tags"]) == ("p", "team", mode.name, ["a"])
        assert asked["resume"] == ("allow" if mode is WandbMode.online else None)
