"""What the README tells users to type is true: every command composes, and the slips it shows give the report it shows."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from tiny_published import gguf_file, hf_folder, llama

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

TUNED = ["stage=sft", "data=pydoc_qa", "peft=lora"]
JUDGE = ["stage=reward", "data=pydoc_pairs", "model/head=reward"]
RUNS: dict[str, list[str]] = {"first": [], "code": [], "chat": [], "tuned": TUNED, "judge": JUDGE}
"""Runs that commands go on from, and what they were begun with."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models under the names of those that the commands start from."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("published")
    theirs = llama(max_position_embeddings=2048)
    gguf_file(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", theirs)
    hf_folder(folder / "SmolLM2-135M", theirs)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 320}
    hf_folder(folder / "all-MiniLM-L6-v2", BertModel(BertConfig(**sizes)))
    return folder


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Path) -> None:
    """A working directory with the run and the models that the commands go on from, and the examples' package on the path."""
    for model in published.iterdir():
        (tmp_path / model.name).symlink_to(model)
    for name, words in RUNS.items():
        run = tmp_path / "outputs" / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(compose_job([f"name={name}", *words]).plain), encoding="utf-8")
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
