"""What the README tells users to type is true: every command composes, and the slips it shows give the report it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError
from llmfactory.run.command import run_command

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
COMMANDS = [
    shlex.split(line, comments=True)[1:] for block in BLOCKS for line in block.splitlines() if line.startswith("llmfactory ")
]
LIGHT = [words for words in COMMANDS if words[0] in ("--help", "options")]
SINGLE = [words for words in COMMANDS if words not in LIGHT and words[0] != "-m"]
SWEEPS = [words[1:] for words in COMMANDS if words[0] == "-m"]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the run that the commands go on from, and the examples' package on the path."""
    run = tmp_path / "outputs" / "first"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(compose_job(["name=first"]).plain), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_the_two_commands_stand_alone_on_a_line() -> None:
    assert "pip install -e . && llmfactory\n" in README
    assert re.search(r"^pip install -e '\.\[test\]' && pytest$", README, re.M)
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("words", SINGLE, ids=" ".join)
def test_commands_compose(words: list[str]) -> None:
    assert compose_job(words).job is not None


@pytest.mark.parametrize("words", SWEEPS, ids=" ".join)
def test_sweeps_compose(words: list[str]) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from llmfactory.run.members import combinations, compose_all

    members = combinations(OverridesParser.create().parse_overrides(words))
    assert len(compose_all(members, ())) == 4


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_light_commands_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(words) == 0
    assert capsys.readouterr().out


def test_the_slips_shown_give_the_report_shown() -> None:
    shown = re.search(r"```text\n\$ llmfactory (.*?)\n\d problems in the config:\n\n(.*?)```", README, re.S)
    assert shown is not None
    with pytest.raises(ConfigError) as caught:
        compose_job(shlex.split(shown[1]))
    assert "\n\n".join(str(problem) for problem in caught.value.problems) == shown[2].strip()
