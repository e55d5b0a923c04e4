"""Killed at any moment, or asked to stop: the same command goes on, and the curve is that of the unbroken run."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_job import write_text

from llmfactory.checkpoint.io import checkpoints
from llmfactory.config.compose import compose_job
from llmfactory.run.folder import read_result
from llmfactory.run.start import start

COMMAND = """
import sys
from llmfactory.config.compose import compose_job
from llmfactory.run.start import start
if __name__ == "__main__":
    print(start(compose_job(sys.argv[1:]))["status"])
"""
STEPS = 400
"""More than a second's worth, so that a signal finds the run at work."""


@pytest.fixture
def common(tmp_path):
    return [
        *("toy=true", "data=text", f"data.source.files=[{write_text(tmp_path)}]", "data.source.split_on=---"),
        *("data/tokenizer=bytes", "data.seq_len=32", "data.held_out=0.2", f"data.cache={tmp_path}/cache", "data.workers=1"),
        *(f"trainer.max_steps={STEPS}", "trainer.batch_size=4", "trainer.eval_every=50", "trainer.save_every=20"),
        *("trainer.log_every=1", "trainer.sample=false", "trainer.device=cpu", f"output_dir={tmp_path}/outputs"),
    ]


def begin(overrides):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", COMMAND, *overrides], env=environment, stdout=subprocess.PIPE, text=True)


def wait_for_step(folder, step):
    end = time.monotonic() + 120
    while not any(path.name >= f"step_{step:08d}" for path in checkpoints(folder / "checkpoints")):
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.02)


def curve(folder):
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(file)]


def test_killed_and_started_again_is_the_unbroken_run(common, tmp_path):
    folder = tmp_path / "outputs" / "r"
    process = begin([*common, "name=r"])
    wait_for_step(folder, 40)
    process.kill()
    process.communicate()
    assert read_result(folder)["status"] == "running"
    again = start(compose_job([*common, "name=r"]))
    whole = start(compose_job([*common, "name=whole"]))
    assert again["step"] == STEPS
    assert curve(folder) == curve(tmp_path / "outputs" / "whole")
    assert again["held_out_loss"] == whole["held_out_loss"]
    assert (folder / "log.txt").read_text().count("run folder: ") == 2


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_ends(common, tmp_path, number):
    folder = tmp_path / "outputs" / "r"
    process = begin([*common, "name=r", "launch=local", "parallel=ddp"])
    wait_for_step(folder, 20)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "terminated"
    assert "the same command goes on from here" in out
    result = read_result(folder)
    assert result["status"] == "terminated"
    assert 20 <= result["step"] < STEPS
    assert checkpoints(folder / "checkpoints")[-1].name == f"step_{result['step']:08d}"
