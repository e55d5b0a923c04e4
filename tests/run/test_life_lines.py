"""The two life lines on the documentation of this Python: that they compose, and, slowly, what each step is good for.

Whole, with three seeds, they take more than an hour: `pytest -m slow tests/run/test_life_lines.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.run.line_plan import plan
from llmfactory.run.start import start

LINES = {"zephyr_tiny": ("judge", "dpo"), "instructgpt_tiny": ("reward", "ppo")}
"""Names of the steps that judge and that learn from judgements."""


@pytest.mark.parametrize("name", LINES)
def test_every_step_composes_and_the_two_lines_share_what_is_alike(name: str) -> None:
    (steps,) = plan(compose_job([f"experiment={name}"]))
    judge, last = LINES[name]
    assert [step.name for step in steps] == ["pretrain", "sft", "warm", judge, last, "answers", "choices", "pairs", "policy"]
    assert next(step.ancestors for step in steps if step.name == "policy") == tuple(sorted((judge, last, "sft")))
    (others,) = plan(compose_job(["experiment=zephyr_tiny"]))
    assert [step.key for step in steps[:4]] == [step.key for step in others[:4]]  # the reward model, too
    assert len({step.composed.job.data.held_out for step in steps}) == 1


def small(name: str, folder: Path) -> list[str]:
    """A twentieth of the steps, and fewer of the judge's, of a narrower model, on a few hundred items of the library alone."""
    judge, last = LINES[name]
    few, alone = '"data.source.items=300"', '"data.source.packages=[]"'
    steps = {"sft": 50, "warm": 20, judge: 20, last: {"dpo": 20, "ppo": 5}[last]}
    changes = [f'stage.changes.{step}=[{few},{alone},"trainer.max_steps={count}"]' for step, count in steps.items()]
    changes += [f"stage.changes.{step}=[{few},{alone}]" for step in ("answers", "choices", "pairs", "policy")]
    model = '"model.dim=64","model.ffn.hidden=128","model.vocab_size=512"'
    changes += [
        f'stage.changes.pretrain=["trainer.max_steps=50","trainer.batch_size=8","data.tokenizer.train_bytes=500000",{model}]'
    ]
    return [f"experiment={name}", *changes, "trainer.device=cpu", f"data.cache={folder}/cache", f"output_dir={folder}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both lines, so that they share their steps."""
    return tmp_path_factory.mktemp("lines")


@pytest.mark.parametrize("name", LINES)
def test_at_a_twentieth_of_its_size_it_runs_through(name: str, folder: Path) -> None:
    line = [*small(name, folder), f"name={name}"]
    result = start(compose_job(line))
    assert [one["figures"]["status"] for one in result["steps"]] == ["finished"] * 9
    measures, last = result["measures"], LINES[name][1]
    assert measures["answers"]["log_likelihood"]["sft - init"]["low"] > 0.0
    assert {"reward", "kl", "tokens"} <= measures["policy"].keys()
    assert measures["policy"]["kl"][last]["mean"] != 0.0
    assert measures["policy"]["kl"]["init"]["mean"] == 0.0
    page = (folder / name / "report.html").read_text()
    assert f"<th>pretrain</th><th>sft</th><th>{last}</th>" in page  # samples side by side
    again = start(compose_job(line))
    assert not any(one["ran"] for one in again["steps"])
    assert again["measures"] == measures


def test_what_the_lines_have_in_common_is_made_once(folder: Path) -> None:
    made = [path.name.partition("-")[0] for path in (folder / "steps").iterdir()]
    assert sorted(set(made)) == ["examine", "ppo", "preference", "pretrain", "reward", "sft"]
    assert [made.count(stage) for stage in ("pretrain", "sft", "reward", "preference", "ppo")] == [1, 1, 2, 1, 1]


def improves(measures: dict[str, Any], step: str, measure: str, difference: str) -> None:
    found = measures[step][measure][difference]
    assert found["items"] >= 1000
    assert found["low"] > 0.0, f"{step} {measure} {difference}: {found}"


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("name", LINES)
def test_each_step_makes_it_better_on_what_was_held_out(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Over at least 1,000 items and 3 seeds, by intervals that exclude zero."""
    last, folder = LINES[name][1], tmp_path_factory.getbasetemp() / "whole_lines"
    result = start(compose_job([f"experiment={name}", "stage.seeds=[0,1,2]", f"name={name}", f"output_dir={folder}"]))
    measures = result["measures"]
    improves(measures, "answers", "log_likelihood", "sft - init")
    improves(measures, "choices", "choice", "sft - init")
    improves(measures, "policy", "reward", f"{last} - init")
    assert measures["policy"]["kl"][last]["mean"] > 0.0
    assert measures["pairs"]["ranked"]["init"]["items"] >= 1000
    assert measures["pairs"]["ranked"]["init"]["mean"] >= 0.75
