"""Sweeps: all members checked first, each in its folder, the same as the run alone, failures recorded, a summary at the end."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from toy_job import write_text

from llmfactory.config.compose import compose_job, search_path
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.run.folder import read_overrides, read_result, write_overrides, write_result
from llmfactory.run.members import combinations, corners
from llmfactory.run.plain_file import read_yaml
from llmfactory.run.start import start
from llmfactory.run.summary import write_summary
from llmfactory.run.sweep import sweep


@pytest.fixture
def common(tmp_path):
    """Overrides of a job that takes a second."""
    return [
        *("toy=true", "data=text", f"data.source.files=[{write_text(tmp_path)}]", "data.source.split_on=---"),
        *("data/tokenizer=bytes", "data.seq_len=32", "data.held_out=0.2", f"data.cache={tmp_path}/cache", "data.workers=1"),
        *("trainer.max_steps=2", "trainer.batch_size=4", "trainer.eval_every=2", "trainer.sample=false", "trainer.device=cpu"),
        f"output_dir={tmp_path}/outputs",
    ]


def table(folder):
    with open(folder / "summary.csv") as file:
        return list(csv.DictReader(file))


def losses(folder):
    with open(folder / "metrics.csv") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


def test_members_run_are_the_runs_alone_and_are_summed_up(common, tmp_path, capsys):
    assert sweep([*common, "name=s", "optim.lr=1e-3,3e-2", "model=llama_tiny,gpt2_tiny"]) == 0
    folder = tmp_path / "outputs" / "s"
    rows = table(folder)
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert {(row["optim.lr"], row["model"]) for row in rows} == {
        ("0.001", "llama_tiny"),
        ("0.001", "gpt2_tiny"),
        ("0.03", "llama_tiny"),
        ("0.03", "gpt2_tiny"),
    }
    found = [float(row["held_out_loss"]) for row in rows]
    assert found == sorted(found)
    assert "<svg" in (folder / "summary.html").read_text()
    out = capsys.readouterr().out
    best = read_overrides(folder / rows[0]["member"])
    assert f"optim.lr={rows[0]['optim.lr']}" in best
    assert "best: llmfactory " in out
    assert f"model={rows[0]['model']}" in out.split("best: llmfactory ")[1]
    # The last member is the run alone, to the last digit, whatever ran before it in this process.
    alone = start(compose_job([*common, "name=alone", "optim.lr=3e-2", "model=gpt2_tiny"]))
    assert losses(folder / "3") == losses(tmp_path / "outputs" / "alone")
    assert read_result(folder / "3")["held_out_loss"] == alone["held_out_loss"]
    # The same sweep again finds everything finished.
    capsys.readouterr()
    assert sweep([*common, "name=s", "optim.lr=1e-3,3e-2", "model=llama_tiny,gpt2_tiny"]) == 0
    assert capsys.readouterr().out.count("is finished already") == 4
    # With other values under the same name, the members that differ are named before any starts.
    with pytest.raises(ConfigError, match=r"optim\.lr = 0\.02: .*0\.03.*members? 2"):
        sweep([*common, "name=s", "optim.lr=1e-3,2e-2", "model=llama_tiny,gpt2_tiny"])
    with pytest.raises(UserError, match="holds a single run"):
        sweep([*common, "name=alone", "optim.lr=1e-3,3e-2"])


def test_all_members_are_checked_before_the_first_starts(common, tmp_path):
    with pytest.raises(ConfigError) as caught:
        sweep([*common, "name=s", "optim.lr=1e-3,-1", "model=llama_tiny,gpt2_tinny", "trainer.keep_last=0"])
    text = str(caught.value)
    assert "optim.lr" in text
    assert "(members 2, 3)" in text
    assert "gpt2_tinny" in text
    assert "(members 1, 3)" in text
    assert "trainer.keep_last" in text
    assert "(all members)" in text
    assert not (tmp_path / "outputs").exists()


def test_a_failing_member_is_recorded_and_the_others_run(common, tmp_path, capsys):
    files = f"data.source.files=[{tmp_path}/nowhere.txt],[{write_text(tmp_path)}]"
    rest = [override for override in common if not override.startswith("data.source.files")]
    assert sweep([*rest, "name=s", files]) == 1
    folder = tmp_path / "outputs" / "s"
    assert read_result(folder / "0")["status"] == "failed"
    assert "nowhere.txt" in read_result(folder / "0")["error"]
    assert read_result(folder / "1")["status"] == "finished"
    rows = table(folder)
    assert [row["member"] for row in rows] == ["1", "0"]
    assert "nowhere.txt" in rows[1]["error"]
    captured = capsys.readouterr()
    assert "member 0 failed" in captured.err
    assert "nowhere.txt" in (folder / "summary.html").read_text()


def test_what_cannot_be_swept(common):
    with pytest.raises(ConfigError, match="cannot be swept"):
        sweep([*common, "name=a,b"])
    with pytest.raises(ConfigError, match=r"output_dir.*cannot be swept"):
        sweep([*common, "output_dir=a,b"])
    with pytest.raises(ConfigError, match=r"model = .*nope.*matches no option"):
        sweep([*common, "model=glob(nope*)"])
    with pytest.raises(ConfigError, match="nothing to sweep"):
        sweep([*common, "stage=describe", "seed=1,2"])
    with pytest.raises(ConfigError, match="needs a sweeper that samples"):
        sweep([*common, "optim.lr=interval(1e-4,1e-2)"])
    with pytest.raises(ConfigError, match=r"optim\.lr = .*\[1"):
        sweep([*common, "optim.lr=[1"])


def test_keys_that_come_with_init_can_be_swept(common, tmp_path, capsys):
    """`data.source.bad_share` is a key of the run's text files; the config's own pydocs has none."""
    start(compose_job([*common, "name=first"]))
    rest = [f"init={tmp_path}/outputs/first", f"output_dir={tmp_path}/outputs", "trainer.max_steps=1", "trainer.sample=false"]
    rest += ["trainer.batch_size=4", "trainer.eval_every=1"]
    assert sweep([*rest, "name=s", "data.source.bad_share=0.1,0.2", "+seed=3,4"]) == 0
    rows = table(tmp_path / "outputs" / "s")
    assert {(row["data.source.bad_share"], row["seed"]) for row in rows} == {
        ("0.1", "3"),
        ("0.1", "4"),
        ("0.2", "3"),
        ("0.2", "4"),
    }
    assert all(row["status"] == "finished" for row in rows)
    # With fewer values the same folder holds what this command asks for, and the rest is not counted.
    assert sweep([*rest, "name=s", "data.source.bad_share=0.1", "+seed=3,4"]) == 0
    assert len(table(tmp_path / "outputs" / "s")) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "hydra/launcher=submitit_slurm",
            r"hydra/launcher = 'submitit_slurm': is not installed.*pip install hydra-submitit-launcher",
        ),
        ("hydra/sweeper=optuna", r"pip install hydra-optuna-sweeper"),
        ("hydra/launcher=nope", r"is not installed: there are basic"),
        ("hydra.sweeper.nope=1", r"Hydra does not take it: .*nope"),
    ],
)
def test_a_plugin_that_is_not_there_is_named_before_a_folder_is_made(common, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        sweep([*common, "name=s", "seed=1,2", override])
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("launch", "repair"),
    [
        (["launch=torchrun", "launch.endpoint=node0:29500"], "launch.start=true"),
        (["launch=slurm"], "launch.submit=sbatch launch.wait=true"),
        (["launch=slurm", "launch.submit=submitit", "launch.time=10"], "launch.submit=submitit launch.wait=true"),
    ],
    ids=lambda one: one[0] if isinstance(one, list) else "",
)
def test_a_sampled_sweep_waits_for_results_or_is_refused(common, tmp_path, launch, repair):
    sampled = ["name=s", "seed=1,2", "hydra/sweeper=optuna", "parallel=ddp", *launch, "launch.processes=1"]
    with pytest.raises(ConfigError, match=f"a sampled sweep needs the result of each member.*\n.*try: {repair}"):
        sweep([*common, *sampled])
    assert not (tmp_path / "outputs").exists()
    with pytest.raises(ConfigError, match="pip install hydra-optuna-sweeper"):
        sweep([*common, *sampled, *repair.split()])


def test_the_best_member_s_command_names_the_config_folders(common, tmp_path, capsys):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    text = (Path(__file__).parents[2] / "conf/model/llama_tiny.yaml").read_text()
    (tmp_path / "mine" / "model" / "own.yaml").write_text(text)
    assert sweep([*common, "name=s", "model=own", "optim.lr=1e-3,3e-3"], [tmp_path / "mine"]) == 0
    assert f"best: llmfactory --config-dir {tmp_path}/mine " in capsys.readouterr().out


def parsed(*overrides):
    options = ConfigLoaderImpl(search_path())
    return OverridesParser.create(config_loader=options).parse_overrides(list(overrides))


def test_members_of_a_grid():
    found = combinations(parsed("seed=range(0,3)", "model=glob(*_tiny)", "optim.lr=0.1"))
    assert ["seed=2", "model=llama_tiny", "optim.lr=0.1"] in found
    assert ["seed=0", "model=gpt2_tiny", "optim.lr=0.1"] in found
    assert len(found) % 3 == 0


def test_a_sampled_sweep_is_checked_at_its_corners():
    found = corners(
        parsed("optim.lr=tag(log,interval(1e-4,1e-1))", "model=choice(llama_tiny,gpt2_tiny)", "seed=range(0,10,4)", "toy=true")
    )
    assert found == [
        ["optim.lr=0.0001", "model=llama_tiny", "seed=0", "toy=True"],
        ["optim.lr=0.1", "model=llama_tiny", "seed=0", "toy=True"],
        ["optim.lr=0.0001", "model=gpt2_tiny", "seed=0", "toy=True"],
        ["optim.lr=0.0001", "model=llama_tiny", "seed=8", "toy=True"],
    ]


def test_a_summary_of_what_is_there(tmp_path):
    for number, (lr, loss) in enumerate([("0.1", 3.0), ("0.2", None), ("0.3", 2.0), ("0.4", float("nan"))]):
        (tmp_path / str(number)).mkdir()
        write_overrides(tmp_path / str(number), [f"optim.lr={lr}"])
        result = {"status": "finished", "held_out_loss": loss}
        write_result(tmp_path / str(number), result if loss is not None else {"status": "failed", "error": "<b>no</b>"})
    (tmp_path / "4").mkdir()
    summary = write_summary(tmp_path, ["optim.lr"], "held_out_loss")
    assert summary.best == ["optim.lr=0.3"]
    assert summary.failed == {1: "<b>no</b>"}
    trace = "Traceback (most recent call last):\n  File x\nValueError: what it was"
    write_result(tmp_path / "1", {"status": "failed", "error": trace})
    assert write_summary(tmp_path, ["optim.lr"], "held_out_loss").failed == {1: "ValueError: what it was"}
    write_result(tmp_path / "1", {"status": "failed", "error": "<b>no</b>"})
    write_summary(tmp_path, ["optim.lr"], "held_out_loss")
    rows = table(tmp_path)
    assert [row["member"] for row in rows][:2] == ["2", "0"]
    assert len(rows) == 4
    page = (tmp_path / "summary.html").read_text()
    assert "&lt;b&gt;no" in page
    assert "<b>no" not in page
    assert json.loads((tmp_path / "1" / "result.json").read_text())["error"] == "<b>no</b>"


@pytest.mark.dist
def test_two_processes_a_member_and_no_child_runs_the_sweep_again(common, tmp_path, capfd):
    assert sweep([*common, "name=s", "launch=local", "parallel=ddp", "optim.lr=1e-3,3e-2"]) == 0
    folder = tmp_path / "outputs" / "s"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1"]
    out = capfd.readouterr().out
    assert out.count("member 0: ") == 1
    assert out.count("member 1: ") == 1
    alone = start(compose_job([*common, "name=alone", "optim.lr=3e-2"]))
    assert read_result(folder / "1")["held_out_loss"] == pytest.approx(alone["held_out_loss"], rel=1e-5)


def test_a_wrong_sweep_is_refused_without_loading_torch():
    code = (
        "import sys\nfrom llmfactory.core.errors import ConfigError\nfrom llmfactory.run.sweep import sweep\n"
        "try:\n    sweep(['optim.lr=1e-3,-1'])\nexcept ConfigError:\n    sys.exit('torch' in sys.modules)\nsys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_several_options_of_a_group_are_no_sweep(tmp_path, monkeypatch):
    """A list names several parts of one job; lists with commas between them are members."""
    monkeypatch.chdir(tmp_path)
    line = [
        "stage=plan",
        "data/source=[pydocs,pycode]",
        "data/clean=[exact],[exact,unicode]",
        "trainer.batch_size=8,16",
        "name=lists",
    ]
    assert sweep(line) == 0
    configs = [read_yaml(path) for path in sorted(Path("outputs/lists").glob("*/config.yaml"))]
    assert [list(config["data"]["clean"]) for config in configs] == [["exact"]] * 2 + [["exact", "unicode"]] * 2
    assert all(list(config["data"]["sources"]) == ["pydocs", "pycode"] for config in configs)
