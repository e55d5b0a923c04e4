"""The examples of own options, parts, sources and stages, run as their README says, without touching the project."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
COMMANDS = [shlex.split(line)[1:] for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith("llmfactory ")]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llmfactory.run", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A copy of the examples, so that nothing is written into the tree."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "examples"))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_commands_of_the_readme(command: list[str], here: Path) -> None:
    done = run(*command, "--cfg", "job", cwd=here)
    assert done.returncode == 0, done.stderr


def test_a_model_with_an_own_norm_learns_an_own_source(here: Path) -> None:
    line = ["plugins=[my_part]", "model=mine", "data/source=sections", "data.source.file=README.md", "data/tokenizer=bytes"]
    small = [
        "toy=true",
        "data.held_out=0.2",
        "trainer.max_steps=2",
        "trainer.batch_size=2",
        "trainer.sample=false",
        "data.seq_len=16",
    ]
    done = run("--config-dir", "my_conf", *line, *small, "name=x", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "type: scale_norm" in (here / "outputs/x/config.yaml").read_text()
    assert list((here / "outputs/x/checkpoints").glob("step_*"))


def test_an_own_stage(here: Path) -> None:
    stage = ["stage=count_tokens", "stage.text=def read(self):", "data/tokenizer=bytes", "data.seq_len=16"]
    source = ["data/source=sections", "data.source.file=README.md", "data.held_out=0.2"]
    done = run("--config-dir", "my_conf", *stage, *source, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "15 tokens, 1.00 bytes each" in done.stdout


def test_own_options_are_listed(here: Path) -> None:
    done = run("--config-dir", "my_conf", "options", "model/norm", "stage", cwd=here)
    assert re.search(r"scale_norm +Norm with one gain\.", done.stdout)
    assert "Least length that is divided by." in done.stdout
    assert "How many tokens a text takes." in done.stdout


def test_each_file_is_short() -> None:
    for path in EXAMPLES.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 30, path
