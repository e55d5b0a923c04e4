"""A line of stages: checked as a whole, run in order, its steps found again by what they depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_job import write_text

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.run import line as line_module
from llmfactory.run.folder import read_result
from llmfactory.run.line import ANCESTRY, finished
from llmfactory.run.line_plan import Step, passed_on, plan
from llmfactory.run.start import start
from llmfactory.run.sweep import sweep

BASE = ["toy=true", "data=text", "data.source.split_on='---'", "data/tokenizer=bytes", "data.seq_len=32", "trainer.max_steps=2"]
CHAT = ["data=chat", "data.form.max_tokens=64", "data.seq_len=64", "data.held_out=0.3"]


def quoted(overrides: list[str]) -> str:
    return "[" + ",".join('"' + one.replace('"', '\\"') + '"' for one in overrides) + "]"


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """A line that takes seconds: a model of text, taught to answer, measured on answers that were held out."""
    talks = [{"instruction": f"What is {n} + {n}?", "output": f"It is {n + n}."} for n in range(40)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(one) + "\n" for one in talks), encoding="utf-8")
    chat = [*CHAT, f"data.source.files=[{tmp_path}/chat.jsonl]"]
    steps = {
        "base": [*BASE, f"data.source.files=[{write_text(tmp_path)}]", "data.held_out=0.2"],
        "taught": ["init=@base", "stage=sft", *chat, "trainer.max_steps=2"],
        "look": ["init=@base", "stage=examine", "stage.against.taught=@taught", "stage.samples=2", "stage.max_tokens=4", *chat],
    }
    given = [f"stage.steps.{name}={quoted(overrides)}" for name, overrides in steps.items()]
    every = ["trainer.batch_size=4", "trainer.eval_every=2", "trainer.sample=false", "trainer.device=cpu"]
    every += [f"data.cache={tmp_path}/cache", "data.workers=1"]
    return ["stage=line", *given, *every, f"output_dir={tmp_path}/outputs", "name=life"]


def keys(line: list[str], *more: str) -> dict[str, str]:
    (steps,) = plan(compose_job([*line, *more]))
    return {step.name: step.key for step in steps}


def ran(line: list[str], *more: str) -> dict[str, bool]:
    return {one["step"]: one["ran"] for one in start(compose_job([*line, *more]))["steps"]}


def test_it_runs_in_order_and_nothing_twice(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    composed = compose_job(line)
    result = start(composed)
    assert [one["step"] for one in result["steps"]] == ["base", "taught", "look"]
    assert all(one["ran"] for one in result["steps"])
    (steps,) = plan(composed)
    base, taught, look = (step.folder for step in steps)
    assert all(folder.parent == tmp_path / "outputs" / "steps" for folder in (base, taught, look))
    saved = yaml.safe_load((taught / "config.yaml").read_text())
    assert saved["init"] == str(base)
    told = json.loads((look / ANCESTRY).read_text())
    assert [one["step"] for one in told["ancestors"]] == ["base", "taught"]
    assert [one["key"] for one in told["ancestors"][1]["ancestors"]] == [steps[0].key]
    measures = result["measures"]["look"]["log_likelihood"]
    assert measures.keys() == {"init", "taught", "taught - init"}
    assert measures["taught - init"]["mean"] == pytest.approx(measures["taught"]["mean"] - measures["init"]["mean"])
    page = (tmp_path / "outputs" / "life" / "report.html").read_text()
    assert "What is" in page  # the questions of the samples
    assert "taught - base" in page
    assert "<th>base</th><th>taught</th>" in page  # side by side
    assert "<td>base, taught</td>" in page  # what the last step is made from
    before = {folder: (folder / "result.json").stat().st_mtime_ns for folder in (base, taught, look)}
    again = start(compose_job(line))
    assert not any(one["ran"] for one in again["steps"])
    assert again["measures"] == result["measures"]
    assert {folder: (folder / "result.json").stat().st_mtime_ns for folder in before} == before
    assert "there already" in capsys.readouterr().out
    # One key: the steps below it, and no others.
    changed = ran(line, 'stage.changes.taught=["optim.lr=1e-4"]')
    assert changed == {"base": False, "taught": True, "look": True}
    # Interrupted: its folder has a checkpoint and no result, and it goes on from there.
    (taught / "result.json").unlink()
    assert ran(line) == {"base": False, "taught": True, "look": False}
    assert "going on from" in capsys.readouterr().out


def test_a_step_that_stops_is_named_and_the_rest_is_kept(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = compose_job(line)
    real = line_module.run_step

    def broken(step: Step, made: dict[str, Step]) -> dict[str, Any]:
        if step.name == "taught":
            step.folder.mkdir(parents=True)
            (step.folder / "foreign").touch()
        return real(step, made)

    monkeypatch.setattr(line_module, "run_step", broken)
    with pytest.raises(UserError, match=r"step taught: .*holds foreign"):
        start(composed)
    result = read_result(tmp_path / "outputs" / "life")
    assert result is not None
    assert result["status"] == "failed"
    assert [one["step"] for one in result["steps"]] == ["base"]
    (steps,) = plan(composed)
    assert [finished(step) for step in steps] == [True, False, False]
    with pytest.raises(UserError, match="holds a run of stage=pretrain"):
        start(compose_job([*line, f"output_dir={steps[0].folder.parent}", f"name={steps[0].folder.name}"]))


def test_keys_follow_what_matters(line: list[str], tmp_path: Path) -> None:
    first = keys(line)
    assert len(set(first.values())) == 3

    def differ(*more: str) -> set[str]:
        return {name for name, key in keys(line, *more).items() if key != first[name]}

    everything = {"base", "taught", "look"}
    assert differ("seed=1") == differ("trainer.batch_size=5") == everything
    assert differ('stage.changes.base=["trainer.max_steps=3"]') == everything
    assert differ('stage.changes.taught=["stage.objective.label_smoothing=0.1"]') == {"taught", "look"}
    assert differ('stage.changes.look=["stage.samples=3"]') == {"look"}
    for harmless in (
        "name=other",
        f"output_dir={tmp_path}/elsewhere",
        "trainer.log_every=3",
        "tracking=none",
        "trainer.threads=1",
    ):
        assert differ(harmless) == set(), harmless
    with (tmp_path / "chat.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"instruction": "What is 1 + 2?", "output": "It is 3."}\n')
    from llmfactory.run import line_plan

    line_plan._KEYS.clear()  # a process looks at data once
    assert differ() == {"taught", "look"}


def test_another_step_s_folder_stands_wherever_its_name_does(line: list[str]) -> None:
    named = [*line, 'stage.changes.look=["stage.judge=@taught","stage.samples=0"]']
    (steps,) = plan(compose_job(named))
    base, taught, look = steps
    assert look.composed.job.stage.judge == str(taught.folder)
    assert look.ancestors == ("base", "taught")
    assert base.ancestors == ()
    assert look.composed.job.init == look.composed.plain["init"] == str(base.folder)


def test_every_problem_of_every_step_is_told_at_once(line: list[str], tmp_path: Path) -> None:
    wrong = [
        'stage.changes.base=["model.dims=3","trainer.batch_size=0"]',
        'stage.changes.look=["init=@tought"]',
        'stage.steps.more=["init=@last","stage=sft"]',
        'stage.steps.last=["stage=line"]',
        'stage.steps.other=["launch=torchrun","launch.endpoint=node0:29500","parallel=ddp"]',
        'stage.changes.other=["trainer.batch_size=8"]',
        'stage.steps.named=["name=mine"]',
    ]
    with pytest.raises(ConfigError) as caught:
        plan(compose_job([*line, *wrong]))
    told = {(problem.path, problem.reason.rpartition(" (step ")[2].rstrip(")")) for problem in caught.value.problems}
    assert {("model.dims", "base"), ("trainer.batch_size", "base"), ("init", "look"), ("init", "more"), ("name", "named")} <= told
    text = str(caught.value)
    assert "init = '@tought': there is no such step; before it come base, taught (step look)" in text
    assert "init = '@last': it stands behind this one" in text
    assert "this launch returns before there is one" in text
    assert "(step taught)" not in text  # nothing is wrong with it but what it stands on
    assert not (tmp_path / "outputs").exists()
    repair = next(one.repair for one in caught.value.problems if one.path == "model.dims")
    assert repair is not None
    assert repair.startswith("'stage.changes.base=[")


def test_what_an_experiment_sets_beside_the_steps_is_refused(line: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\n# Mine.    llmfactory experiment=mine\ndefaults:\n  - override /stage: line\n  - _self_\n"
        "stage: {steps: {base: [trainer.max_steps=2]}}\noptim: {lr: 1.0}\n"
    )
    with pytest.raises(ConfigError, match="whose steps do not see it"):
        plan(compose_job(["experiment=mine"], [tmp_path / "conf"]))


def test_what_goes_to_all_steps() -> None:
    typed = [
        "experiment=zephyr_tiny",
        "seed=3",
        "stage.seeds=[1]",
        "name=x",
        "output_dir=o",
        "+trainer.log_every=2",
        "parallel=ddp",
    ]
    typed += ["data/pack=grouped", "stage/objective=dpo", "resume=never"]
    assert passed_on(typed) == ["seed=3", "+trainer.log_every=2", "parallel=ddp", "data/pack=grouped"]


def test_seeds_are_taken_together(line: list[str]) -> None:
    result = start(compose_job([*line, "stage.seeds=[0,1]"]))
    assert [(one["step"], one["seed"]) for one in result["steps"]] == [
        (name, seed) for seed in (0, 1) for name in ("base", "taught", "look")
    ]
    assert len({one["key"] for one in result["steps"]}) == 6
    assert result["measures"]["look"]["log_likelihood"]["taught - init"]["seeds"] == 2
    with pytest.raises(ConfigError, match="different numbers"):
        compose_job([*line, "stage.seeds=[1,1]"])


def test_a_sweep_over_lines_shares_their_steps(line: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such step"):
        sweep([*line, 'stage.changes.look=["init=@base"],["init=@bose"]'])
    assert sweep([*line, 'stage.changes.taught=["optim.lr=1e-3"],["optim.lr=1e-2"]']) == 0
    members = [read_result(tmp_path / "outputs" / "life" / str(number)) for number in (0, 1)]
    assert [[one["ran"] for one in member["steps"]] for member in members if member] == [[True] * 3, [False, True, True]]


@pytest.mark.slow
def test_steps_are_launched_as_their_own_commands_are(line: list[str]) -> None:
    two = ["launch=local", "launch.processes=2", "parallel=ddp"]
    assert keys(line, *two) == keys(line)  # the same mathematics
    result = start(compose_job([*line, *two]))
    assert [one["figures"]["status"] for one in result["steps"]] == ["finished"] * 3


def test_specs_check_themselves() -> None:
    for wrong in (
        ["stage=line"],
        ["stage=line", 'stage.steps.a=["seed=1"]', "stage.changes.b=[]"],
        ["stage=line", 'stage.steps={"a-b": []}'],
    ):
        with pytest.raises(ConfigError):
            compose_job(wrong)
