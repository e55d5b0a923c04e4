"""One job from its config to its final table: what the run folder holds, going on, refusing, failing."""

from __future__ import annotations

import csv
import os
import shutil

import pytest
from tiny_published import TEMPLATE, gguf_file, hf_folder, llama
from toy_job import toy_job

from llmfactory.checkpoint.io import checkpoints
from llmfactory.checkpoint.names.published import open_published
from llmfactory.config.compose import Composed
from llmfactory.config.plain import from_plain, to_plain
from llmfactory.config.spec import Resume
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.tokenizer.tokenizer import load
from llmfactory.launch.spec import Local
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64
from llmfactory.run.folder import read_config, read_result
from llmfactory.run.start import start
from llmfactory.stage.initial import load_tokenizer
from llmfactory.stage.spec import Evaluate, Generate
from llmfactory.tracking.spec import Csv, None_


@pytest.fixture
def go(tmp_path):
    """Start the toy job with some changes."""

    def run(**changes):
        job = toy_job(tmp_path, **{"output_dir": str(tmp_path / "outputs"), "name": "r", "tracking": Csv(), **changes})
        return start(
            Composed(job=job, plain=to_plain(job), choices={"model": "toy", "data": "text"}, overrides=["a=1"], origins={})
        )

    return run


def curve(folder):
    """metrics.csv without the speed."""
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(file)]


def test_the_run_folder_holds_everything(go, tmp_path, capsys):
    result = go(name=None)
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.startswith("toy-text-")
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "overrides.txt", "metrics.csv", "result.json", "report.html", "checkpoints", "log.txt", ".lock")
    }
    assert read_result(folder) == result
    assert from_plain(read_config(folder)).name == folder.name
    assert (folder / "overrides.txt").read_text() == "a=1\n"
    assert result["status"] == "finished"
    assert result["step"] == 8
    assert len(curve(folder)) == 8
    assert result["bits_per_byte"] > 0
    assert 0 < result["mfu"] < 10
    assert result["sample"]["text"]
    assert (checkpoints(folder / "checkpoints")[-1] / "tokenizer").is_dir()
    out = capsys.readouterr().out
    for shown in (
        "held-out loss",
        "perplexity",
        "bits per byte",
        "gzip -9",
        "xz -9",
        "tokens/s",
        "model FLOPs utilization",
        "sample",
    ):
        assert shown in out
    log = (folder / "log.txt").read_text()
    assert log == out
    assert "step 8/8" in log


def test_a_finished_run_says_so_and_a_later_end_goes_on(go, tmp_path, capsys):
    first = go()
    before = (tmp_path / "outputs" / "r" / "result.json").read_bytes()
    capsys.readouterr()
    assert go() == first
    out = capsys.readouterr().out
    assert "is finished already" in out
    assert "bits per byte" in out
    assert (tmp_path / "outputs" / "r" / "result.json").read_bytes() == before
    second = go(trainer__max_steps=12)
    whole = go(name="whole", trainer__max_steps=12)
    assert second["step"] == 12
    assert curve(tmp_path / "outputs" / "r") == curve(tmp_path / "outputs" / "whole")
    assert second["held_out_loss"] == whole["held_out_loss"]
    assert second["sample"] == whole["sample"]
    assert "going on from" in (tmp_path / "outputs" / "r" / "log.txt").read_text()


def test_a_run_goes_on_with_the_text_that_it_began_with(go, tmp_path):
    go()
    with open(tmp_path / "text.txt", "a") as file:
        file.write("---\none more document\n")
    with pytest.raises(UserError, match="have changed since"):
        go(trainer__max_steps=12)
    assert go(trainer__max_steps=12, resume=Resume.changed)["step"] == 12


def test_another_config_is_refused(go, tmp_path):
    go(trainer__max_steps=1)
    with pytest.raises(ConfigError, match=r"seed = 1: the run in this folder has 0"):
        go(seed=1)
    assert read_result(tmp_path / "outputs" / "r")["status"] == "finished"


def test_a_failure_is_recorded_and_mended(go, tmp_path):
    text = (tmp_path / "text.txt") if (tmp_path / "text.txt").exists() else None
    with pytest.raises(UserError, match="nowhere"):
        go(data__source__files=[str(tmp_path / "nowhere.txt")])
    folder = tmp_path / "outputs" / "r"
    result = read_result(folder)
    assert result["status"] == "failed"
    assert "nowhere" in result["error"]
    assert "nowhere" in (folder / "log.txt").read_text()
    assert "Traceback" not in (folder / "log.txt").read_text()
    assert go(trainer__max_steps=1)["status"] == "finished", text


def test_a_damaged_checkpoint_is_named_and_left_alone(go, tmp_path):
    go()
    newest = checkpoints(tmp_path / "outputs" / "r" / "checkpoints")[-1]
    shard = next(newest.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        go(trainer__max_steps=12)
    assert shard.exists()
    shutil.rmtree(newest)  # what the user may do then
    assert go(trainer__max_steps=12)["step"] == 12


def test_evaluate_agrees_with_training_and_generate_leaves_nothing(go, tmp_path, capsys):
    trained = go(precision=Fp64())
    init = str(tmp_path / "outputs" / "r")
    evaluated = go(name=None, stage=Evaluate(), init=init, precision=Fp64())
    assert evaluated["held_out_loss"] == pytest.approx(trained["held_out_loss"], rel=1e-12)
    assert evaluated["bits_per_byte"] == pytest.approx(trained["bits_per_byte"], rel=1e-12)
    assert evaluated["gzip_bits_per_byte"] == trained["gzip_bits_per_byte"]
    go(name=None, stage=Generate(prompt="the ", max_tokens=5), init=init)
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["r"]
    kept = go(name="e", stage=Evaluate(), init=init)
    assert read_result(tmp_path / "outputs" / "e") == kept
    assert (tmp_path / "outputs" / "e" / "report.html").exists()
    capsys.readouterr()
    go(name="e", stage=Evaluate(), init=init)
    assert "is finished already" in capsys.readouterr().out


def test_a_run_goes_on_when_its_init_is_gone(go, tmp_path):
    """It has its own weights and its own copy of the tokenizer: the unbroken run, bit for bit."""
    go(name="before")
    init = str(tmp_path / "outputs" / "before")
    go(name="whole", init=init)
    go(name="after", init=init, trainer__max_steps=4)
    shutil.move(init, tmp_path / "elsewhere")
    go(name="after", init=init)
    rows = [curve(tmp_path / "outputs" / name) for name in ("whole", "after")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 8


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_published_model_is_trained_on(go, tmp_path, kind):
    """And what comes of it carries the tokenizer on, with its chat template."""
    path = hf_folder(tmp_path / "m") if kind == "folder" else gguf_file(tmp_path / "m.gguf")
    spec = open_published(path).spec
    result = go(init=str(path), model=spec, trainer__max_steps=2, optim__lr=1e-9)
    evaluated = go(name=None, stage=Evaluate(), init=str(path), model=spec)
    assert result["held_out_loss"] == pytest.approx(evaluated["held_out_loss"], rel=1e-5)
    kept = load(checkpoints(tmp_path / "outputs" / "r" / "checkpoints")[-1] / "tokenizer")
    assert kept.usage.chat_template == TEMPLATE
    assert kept.usage == load_tokenizer(path, 320).usage
    again = go(name="next", init=str(tmp_path / "outputs" / "r"), model=spec, trainer__max_steps=1)
    assert again["status"] == "finished"


def test_a_tokenizer_larger_than_the_model_is_refused_before_training(go, tmp_path):
    path = hf_folder(tmp_path / "m", llama(vocab_size=260))
    with pytest.raises(UserError, match=r"m has 283 ids, the model only 260"):
        go(init=str(path), model=open_published(path).spec)


def test_tracking_none_leaves_no_metrics(go, tmp_path):
    go(tracking=None_(), trainer__max_steps=1, trainer__sample=False, trainer__progress=False)
    folder = tmp_path / "outputs" / "r"
    assert not (folder / "metrics.csv").exists()
    assert "sample" not in read_result(folder)
    assert "step 1/1" not in (folder / "log.txt").read_text()


@pytest.mark.dist
def test_two_processes_give_the_numbers_of_one(go, tmp_path):
    one = go(precision=Fp64())
    environment = dict(os.environ)
    two = go(name="two", launch=Local(processes=2), parallel=Mesh(dp_replicate=2), precision=Fp64())
    assert dict(os.environ) == environment
    for key in ("held_out_loss", "bits_per_byte"):
        assert two[key] == pytest.approx(one[key], rel=1e-9)
    first, second = (curve(tmp_path / "outputs" / name) for name in ("r", "two"))
    for a, b in zip(first, second, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-9)
    log = (tmp_path / "outputs" / "two" / "log.txt").read_text()
    assert log.count("step 8/8  loss") == 1
    assert "bits per byte" in log


def test_a_change_that_fails_leaves_the_config_as_it_was(go, tmp_path):
    """resume=changed with a model that the checkpoint does not fit: the run's own command must work afterwards."""
    go()
    folder = tmp_path / "outputs" / "r"
    before = (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match="does not fit the model"):
        go(resume=Resume.changed, model__dim=24, trainer__max_steps=10)
    assert (folder / "config.yaml").read_text() == before
    assert read_result(folder)["status"] == "failed"
    assert go(trainer__max_steps=10)["step"] == 10
