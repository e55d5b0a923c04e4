"""The command line, each time in a process of its own: what it prints, how it exits, what it imports, what it leaves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import llmfactory
from llmfactory.config.compose import compose_job
from llmfactory.config.register import groups, options

HEAVY = """
import sys
from llmfactory.run.command import run_command
code = run_command(sys.argv[1:])
heavy = {name for name in ("torch", "lightning", "transformers", "wandb", "matplotlib", "rich") if name in sys.modules}
assert not heavy, heavy
light = {name for name in ("hydra", "omegaconf") if name in sys.modules}
print("imported:", *sorted(light), file=sys.stderr)
sys.exit(code)
"""


def run(*arguments: str, cwd: Path, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "llmfactory.run"]
    root = str(Path(llmfactory.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, *start, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "hydra"),
    [
        (["--help"], 0, False),
        (["--version"], 0, False),
        (["options"], 0, False),
        (["options", "model/attention", "optim"], 0, False),
        (["options", "no_such"], 2, False),
        (["--cfg", "job"], 0, True),
        (["--cfg", "job", "model=gpt2", "toy=true", "-p", "model.attention"], 0, True),
        (["--cfg", "job", "-p", "model.atention"], 2, True),
        (["model=no_such", "optim.lr=x", "name=x"], 2, True),
        (["--no-such-option"], 2, True),
        (["--cfg", "everything"], 2, False),
        (["launch=local", "name=x"], 2, True),
        (["--config-dir", "no_such_folder"], 2, True),
        (["--resolve"], 2, False),
        (["-m", "--config-name", "other"], 2, False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_light_and_without_a_trace(arguments: list[str], code: int, hydra: bool, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path, code=HEAVY)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("hydra" in done.stderr.rpartition("imported:")[2]) == hydra
    assert bool(done.stdout) == (code == 0)
    if code:
        assert "problem" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_group_and_option(tmp_path: Path) -> None:
    text = run("--help", cwd=tmp_path, COLUMNS="200").stdout
    for group in groups():
        assert all(f" {option}" in text for option in (group, *options(group)))


def test_options_tell_fields_and_defaults(tmp_path: Path) -> None:
    text = run("options", "model/attention", cwd=tmp_path).stdout
    assert re.search(r"gqa_kv8 +Attention with 8 key/value heads", text)
    assert "n_kv_heads = null  Number of key/value heads; None: as many as n_heads. (a whole number, or null)" in text


def test_version(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout == f"llmfactory {llmfactory.__version__}\n"


def test_the_config_printed_is_the_config_composed(tmp_path: Path) -> None:
    line = ["model=gpt2", "optim.lr=1e-4", "name=${model.dim}"]
    done = run("--cfg", "job", "--resolve", *line, cwd=tmp_path)
    assert yaml.safe_load(done.stdout) == compose_job(line).plain
    part = run("--cfg", "job", "--package", "model.attention", *line, cwd=tmp_path)
    assert yaml.safe_load(part.stdout) == compose_job(line).plain["model"]["attention"]


def test_hydras_own_config(tmp_path: Path) -> None:
    done = run("--cfg", "hydra", "hydra.verbose=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["hydra"]["verbose"] is True


def test_all_problems_on_stderr(tmp_path: Path) -> None:
    done = run("optim.lr=x", "learning_rate=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("2 problems in the config:\n\n")
    assert "optim.lr = 'x': must be a number, not a text\n  try: optim.lr=" in done.stderr
    assert "learning_rate = 3: is called optim.lr here\n  try: optim.lr=3" in done.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("llmfactory model=ll", {"model=llama_tiny", "model=llama3_8b"}),
        ("llmfactory model/att", {"model/attention="}),
        ("llmfactory optim.s", {"optim.schedule."}),
        ("llmfactory model=gpt2 model/norm=rms", {"model/norm=rms_norm", "model/norm=rms_norm_1e6"}),
        ("llmfactory --config-dir {folder} model=mi", {"model=mine"}),
    ],
)
def test_completion(line: str, expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine.\ndefaults: [llama_tiny, _self_]\n")
    line = line.format(folder=tmp_path)
    done = run("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert expected <= found
    assert not any("schema" in word for word in found)


def test_completion_scripts(tmp_path: Path) -> None:
    assert "complete -o nospace" in run("--shell-completion", "install=bash", cwd=tmp_path).stdout
    assert "unset hydra_bash_completion" in run("-sc", "uninstall=bash", cwd=tmp_path).stdout
    assert run("-sc", "install=no_shell", cwd=tmp_path).returncode == 2
    assert run("-sc", cwd=tmp_path).returncode == 2
    assert run("-sc", "query=bash", cwd=tmp_path).returncode == 2


def test_describe(tmp_path: Path) -> None:
    done = run("stage=describe", "model=gpt2", "model/ffn=swiglu", "optim.lr=0.01", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split() == ["lr:", "0.01", "command", "line"] for line in lines)
    assert any("ffn: glu" in line and "conf/model/ffn/swiglu.yaml, chosen by command line" in line for line in lines)
    assert "TokenEmbedding -> LearnedPosition -> 12 x PreNormBlock -> LayerNormalization -> TiedHead" in done.stdout
    assert "152,705,280" in done.stdout
    assert "2,048 tokens: 8 rows of 256, over 1 process(es)" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    root = str(Path(llmfactory.__file__).parent.parent)
    done = subprocess.run(
        f"{sys.executable} -m llmfactory.run --help | head -1",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""


def test_the_layout_of_a_wheel(tmp_path: Path) -> None:
    """There conf/ lies within the package, in a source tree beside it."""
    package = Path(llmfactory.__file__).parent
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    shutil.copytree(package, site / "llmfactory", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "conf", site / "llmfactory" / "conf")
    elsewhere.mkdir()
    done = run("--cfg", "job", "model=gpt2", cwd=elsewhere, PYTHONPATH=str(site))
    assert yaml.safe_load(done.stdout) == compose_job(["model=gpt2"]).plain, done.stderr
