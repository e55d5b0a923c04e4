"""launch=local: results, errors of the same kind, signals, restarts, and nothing left running."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from jobs import curve, overrides

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.launch.spec import Local
from llmfactory.run import start

pytestmark = pytest.mark.dist


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(name, config, folder=None, **options):
    import local_workers

    return Local(**options).run(getattr(local_workers, name), config, folder)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(*paths: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not all(path.exists() and path.stat().st_size for path in paths):
        assert time.monotonic() < end, f"{paths} never came"
        time.sleep(0.05)


def test_returns_what_rank_0_returned_and_cleans_the_environment(tmp_path, monkeypatch):
    for name in ("SLURM_PROCID", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    before = dict(os.environ)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)]
    result = run("report", {"folder": str(tmp_path), "deep": {"list": [1, None, "x"]}}, processes=2, threads=3)
    assert result["rank"] == 0
    assert result["config"] == {"folder": str(tmp_path), "deep": {"list": [1, None, "x"]}}
    assert result["WORLD_SIZE"] == "2"
    assert result["OMP_NUM_THREADS"] == "3"
    assert result["SLURM_PROCID"] is None
    assert result["MASTER_ADDR"] == "127.0.0.1"
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["rank_0", "rank_1"]
    assert dict(os.environ) == before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)] == handlers


@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("config", ConfigError, "optim.lr = -1.0: must be positive\n  try: optim.lr=0.1"),
        ("user", UserError, "the disk is full"),
        ("accident", RuntimeError, "ZeroDivisionError: an accident"),
        ("killed", UserError, "rank 1 was killed by SIGKILL"),
    ],
)
def test_the_first_failure_is_raised_as_its_kind_and_no_process_is_left(tmp_path, how, kind, text):
    with pytest.raises(kind) as caught:
        run("fail", {"folder": str(tmp_path), "how": how}, processes=2)
    assert text in str(caught.value)
    assert "lost the connection" not in str(caught.value)
    pids = [int(path.name.removeprefix("pid_")) for path in tmp_path.glob("pid_*")]
    assert len(pids) == 2
    assert not any(map(alive, pids))


def test_restarts(tmp_path):
    assert run("fail_once", {"folder": str(tmp_path)}, processes=1, max_restarts=1) == {"attempt": 1}
    with pytest.raises(UserError, match="not at the first attempt"):
        (tmp_path / "tried_0").unlink()
        run("fail_once", {"folder": str(tmp_path)}, processes=1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("how", "operation"), [("collective", r"all_reduce \(.*: float \[3\]\)"), ("point_to_point", "recv")])
def test_a_hang_shows_which_rank_waits_where(tmp_path, how, operation):
    config = {"folder": str(tmp_path), "how": how, "parallel": {"timeout_s": 4.0}}
    with pytest.raises(UserError) as caught:
        run("wait_for_each_other", config, tmp_path, processes=2)
    text = str(caught.value)
    assert "parallel.timeout_s=4" in text
    assert re.search(rf"rank 0 waits in {operation}, .*local_workers.py:\d+ \(wait_for_each_other\)", text), text
    assert re.search(r"rank 1 does not wait for anybody: it is in .*local_workers.py:\d+ \(busy_elsewhere\)", text), text
    assert f"rank 0 on {socket.gethostname()}; its log: {tmp_path}/logs/rank_0.txt" in text
    assert (tmp_path / "logs" / "flight_recorder_0").stat().st_size
    pids = [int(path.name.removeprefix("pid_")) for path in tmp_path.glob("pid_*")]
    assert len(pids) == 2
    assert not any(map(alive, pids))


def test_a_rank_that_dies_at_the_start_without_a_word(tmp_path):
    with pytest.raises(
        UserError, match=r"the process of rank 1 ended with exit code 3 and without a word; its log: .*rank_1.txt"
    ):
        run("die", {"folder": str(tmp_path), "parallel": {"timeout_s": 60.0}}, tmp_path, processes=2)
    pids = [int(path.name.removeprefix("pid_")) for path in tmp_path.glob("pid_*")]
    assert len(pids) == 2
    assert not any(map(alive, pids))


def test_each_rank_has_a_log_and_the_failing_one_s_is_named(tmp_path, capfd):
    with pytest.raises(UserError, match=f"the disk is full\n.rank 1 on .*; its log: {tmp_path}/logs/rank_1.txt") as caught:
        run("speak", {"fail": True, "folder": str(tmp_path)}, tmp_path, processes=2)
    log = (tmp_path / "logs" / "rank_1.txt").read_text()
    assert "python of rank 1" in log
    assert "library of rank 1" in log
    assert "the disk is full" in log
    out = capfd.readouterr().out
    assert "library of rank 0" in out
    assert "rank 1" not in out
    assert str(caught.value).count("disk") == 1


def test_a_job_whose_rank_is_killed_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    import local_workers

    common = [*overrides(tmp_path), "trainer.max_steps=60"]
    alone = start.start(compose_job([*common, "name=alone"]))
    monkeypatch.setattr(start, "work", local_workers.work_and_be_killed_once)
    line = [*common, "name=r", "parallel=ddp", "launch=local", "launch.max_restarts=1"]
    result = start.start(compose_job(line))
    assert result["status"] == "finished"
    assert result["held_out_loss"] == pytest.approx(alone["held_out_loss"], rel=1e-9)
    run = tmp_path / "outputs" / "r"
    np.testing.assert_allclose(curve(run), curve(tmp_path / "outputs" / "alone"), rtol=1e-9)
    for rank in (0, 1):
        log = (run / "logs" / f"rank_{rank}.txt").read_text()
        assert [text.split(",")[2] for text in log.splitlines() if text.startswith("--- ")] == [" attempt 0", " attempt 1"]
    assert "going on from" in (run / "log.txt").read_text()


def test_sigterm_reaches_the_workers_which_finish(tmp_path):
    def terminate():
        wait_for(tmp_path / "ready_0", tmp_path / "ready_1")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    result = run("until_told", {"folder": str(tmp_path)}, processes=2)
    thread.join()
    assert result == {"stopped": "terminated"}
    assert (tmp_path / "saved_0").exists()
    assert (tmp_path / "saved_1").exists()


def test_a_signal_before_there_is_anything_to_save_is_no_failure(tmp_path):
    def terminate():
        wait_for(tmp_path / "ready_0")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="before there was anything to save"):
        run("deaf", {"folder": str(tmp_path)}, processes=1)
    thread.join()


def test_workers_save_and_end_when_the_parent_is_killed(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "import local_workers; from llmfactory.launch.spec import Local\n"
        "Local(processes=2).run(local_workers.until_told, {'folder': sys.argv[1]})"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent), str(root)])
    ready = tmp_path / "ready_0", tmp_path / "ready_1"
    wait_for(*ready)
    parent.kill()
    parent.wait()
    pids = [int(path.read_text()) for path in ready]
    end = time.monotonic() + 30
    while any(map(alive, pids)):
        assert time.monotonic() < end, "orphans"
        time.sleep(0.05)
    assert (tmp_path / "saved_0").exists()
    assert (tmp_path / "saved_1").exists()
