"""What is noted of the machine, and when a resumed run says that it is another one."""

from __future__ import annotations

import json
import subprocess

import torch

from llmfactory.run.environment import changed_bits, environment


def test_it_is_plain_data_of_this_machine():
    found = environment(torch.device("cpu"), processes=2)
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["processes"] == 2
    assert found["cpu"]


def test_the_users_own_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment(torch.device("cpu"), 1)["git"] is None

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "x")
    commit = environment(torch.device("cpu"), 1)["git"]
    assert len(commit) == 12
    (tmp_path / "a").write_text("2")
    assert environment(torch.device("cpu"), 1)["git"] == f"{commit}+changes"


def test_what_may_change_the_last_bit_is_told_in_one_line():
    now = environment(torch.device("cpu"), 1)
    assert changed_bits(now, now) is None
    assert changed_bits({**now, "git": "other", "os": "other", "cpu": "other"}, now) is None
    line = changed_bits({**now, "threads": 99, "torch": "2.11.0"}, now)
    assert line is not None
    assert "\n" not in line
    assert f"threads 99 -> {now['threads']}" in line
    assert "torch 2.11.0 -> " in line
