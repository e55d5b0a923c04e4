"""`init=` brings model and data of a run along."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_published import gguf_file, hf_folder

from llmfactory.checkpoint.names.published import open_published
from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as far as composing looks at it."""
    folder = tmp_path / "outputs" / "before"
    (folder / "checkpoints" / "step_00000010").mkdir(parents=True)
    plain = compose_job(
        ["model=gpt2_tiny", "model.n_layers=3", "model.attention.n_heads=4", "data=pycode", "data.seq_len=100"]
    ).plain
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    return folder


@pytest.mark.parametrize("where", [".", "checkpoints/step_00000010"])
def test_model_and_data_come_along(run: Path, where: str) -> None:
    composed = compose_job([f"init={run / where}", "stage=evaluate"])
    before = compose_job(
        ["model=gpt2_tiny", "model.n_layers=3", "model.attention.n_heads=4", "data=pycode", "data.seq_len=100"]
    ).job
    assert (composed.job.model, composed.job.data) == (before.model, before.data)
    assert composed.origins["model.n_layers"].startswith("init (")
    assert composed.choices["model"] == "before"
    assert composed.choices["data"] == "pycode"


def test_values_go_on_top(run: Path) -> None:
    job = compose_job(["data.seq_len=50", "model.dropout=0.2", f"init={run}"]).job
    assert (job.data.seq_len, job.model.dropout, job.model.n_layers) == (50, 0.2, 3)


def test_groups_of_the_command_line_win(run: Path) -> None:
    job = compose_job([f"init={run}", "data=pydocs"]).job
    assert (type(job.data.source).__name__, job.data.seq_len, job.model.n_layers) == ("Pydocs", 256, 3)
    assert compose_job([f"init={run}", "model=llama_tiny"]).job.model.n_layers == compose_job([]).job.model.n_layers


def test_a_part_of_the_command_line_keeps_the_widths_of_the_run(run: Path) -> None:
    model = compose_job([f"init={run}", "model/attention=gqa"]).job.model
    assert (model.attention.n_heads, model.attention.bias, model.n_layers) == (4, False, 3)


def test_a_folder_that_is_not_there_lists_the_runs(run: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_job(["init=nowhere", f"output_dir={run.parent}", "stage=evaluate"])
    (problem,) = raised.value.problems
    assert (problem.path, problem.repair) == ("init", f"init={run}")
    with pytest.raises(ConfigError, match="no run below"):
        compose_job(["init=nowhere", f"output_dir={run / 'none'}"])


def test_a_config_that_cannot_be_read(run: Path) -> None:
    (run / "config.yaml").write_text("model: {type: no_such}\n")
    with pytest.raises(ConfigError, match="no_such") as raised:
        compose_job([f"init={run}"])
    assert [problem.path for problem in raised.value.problems] == ["init"]


def test_weights_of_a_full_model_do_not_fit_a_toy(run: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_job([f"init={run}", "toy=true"])
    assert [(problem.path, problem.repair) for problem in raised.value.problems] == [("toy", "toy=false")]


def test_a_toy_goes_on_as_a_toy(run: Path) -> None:
    (run / "config.yaml").write_text(yaml.safe_dump(compose_job(["toy=true"]).plain))
    assert compose_job([f"init={run}", "toy=true"]).job.model == compose_job(["toy=true"]).job.model


def test_another_tokenizer_than_the_checkpoints_is_refused(run: Path) -> None:
    """It would have no effect."""
    for line in (
        ["data/tokenizer=byte_bpe"],
        ["data=pydocs", "data/tokenizer=bytes"],
        ["data=pydocs", "data.tokenizer.train_bytes=9"],
    ):
        with pytest.raises(ConfigError) as raised:
            compose_job([f"init={run}", *line])
        (problem,) = raised.value.problems
        assert (problem.path, problem.repair) == ("data.tokenizer", "init=null")
        compose_job([*line, "init=null"])


def experiment(folder: Path, name: str, text: str) -> list[Path]:
    (folder / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return [folder / "conf"]


def test_what_an_experiment_picks_counts_as_picked(run: Path, tmp_path: Path) -> None:
    """As on the command line: neither is overruled without a word."""
    lines = "defaults:\n  - override /model: llama_tiny\n  - _self_\nmodel: {dropout: 0.3}\ndata: {seq_len: 60}\n"
    composed = compose_job([f"init={run}", "experiment=e"], experiment(tmp_path, "e", lines))
    assert composed.job.model.n_layers == compose_job([]).job.model.n_layers
    assert (composed.job.model.dropout, composed.job.data.seq_len, type(composed.job.data.source).__name__) == (0.3, 60, "Pycode")
    assert "model" not in {key for key, name in composed.choices.items() if name == "before"}


def test_values_of_an_experiment_go_on_top_and_the_command_line_on_them(run: Path, tmp_path: Path) -> None:
    folders = experiment(tmp_path, "e", "defaults:\n  - _self_\nmodel: {dropout: 0.3}\ndata: {seq_len: 60}\n")
    composed = compose_job([f"init={run}", "experiment=e", "data.seq_len=50"], folders)
    assert (composed.job.model.dropout, composed.job.model.n_layers, composed.job.data.seq_len) == (0.3, 3, 50)
    assert composed.origins["model.dropout"].endswith("e.yaml")
    assert composed.origins["model.n_layers"].startswith("init (")


@pytest.mark.parametrize(
    "text",
    [
        "defaults:\n  - override /data/tokenizer: bytes\n  - _self_\n",
        "defaults:\n  - _self_\ndata: {tokenizer: {train_bytes: 9}}\n",
    ],
)
def test_a_tokenizer_of_an_experiment_is_refused_too(run: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"the one of .*e.yaml has no effect") as raised:
        compose_job([f"init={run}", "experiment=e"], experiment(tmp_path, "e", text))
    assert [problem.path for problem in raised.value.problems] == ["data.tokenizer"]


def test_a_run_goes_on_when_what_it_started_from_is_gone(run: Path) -> None:
    line = [f"init={run}", f"output_dir={run.parent}", "name=after", "trainer.max_steps=9"]
    before = compose_job(line)
    (run.parent / "after").mkdir()
    (run.parent / "after" / "config.yaml").write_text(yaml.safe_dump(before.plain))
    run.rename(run.parent / "elsewhere")
    assert compose_job(line).job == before.job
    for other in (["name=another"], ["name=null"], ["init=outputs/typo"]):
        with pytest.raises(ConfigError, match="there is no such file or folder"):
            compose_job([*line, *other])


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_published_model_comes_along(tmp_path: Path, kind: str) -> None:
    path = hf_folder(tmp_path / "Some-Model") if kind == "folder" else gguf_file(tmp_path / "Some-Model.gguf")
    composed = compose_job([f"init={path}", "data.seq_len=64"])
    assert composed.job.model == open_published(path).spec
    assert composed.origins["model.n_layers"] == f"init ({path / 'config.json' if kind == 'folder' else path})"
    assert (composed.choices["model"], composed.choices["data"]) == ("Some-Model", "pydocs")
    changed = compose_job([f"init={path}", "data.seq_len=64", "model.dropout=0.1", "stage=describe"])
    assert (changed.job.model.dropout, changed.job.model.dim) == (0.1, 32)
    with pytest.raises(ConfigError, match=r"data.seq_len.*max_positions=64"):
        compose_job([f"init={path}", "data.seq_len=65"])


def test_a_published_model_that_cannot_be_read_is_a_problem_of_init(tmp_path: Path) -> None:
    """Told with everything else that is wrong."""
    path = gguf_file(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ConfigError, match="is damaged or cut off") as raised:
        compose_job([f"init={path}", "optim.lr=-1"])
    assert {problem.path for problem in raised.value.problems} == {"init", "optim.lr"}
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"m.bin holds pickled weights"):
        compose_job([f"init={tmp_path / 'm.bin'}"])
    (tmp_path / "m.txt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"m.txt is neither a folder with config.json nor a GGUF file"):
        compose_job([f"init={tmp_path / 'm.txt'}"])


@pytest.mark.parametrize(("line", "repair"), [([], "init=null"), (["stage=generate", "stage.prompt=x"], None)])
def test_a_stage_that_needs_a_model_is_not_told_to_go_without(line: list[str], repair: str | None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_job([*line, f"init={tmp_path}/nowhere", f"output_dir={tmp_path}"])
    assert [problem.repair for problem in raised.value.problems] == [repair]


def test_a_mixture_comes_along(tmp_path: Path) -> None:
    before = compose_job(["data/source=[pydocs,pycode]", "data/clean=[exact]"])
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "config.yaml").write_text(yaml.safe_dump(before.plain))
    composed = compose_job([f"init={tmp_path / 'mixed'}", "stage=evaluate"])
    assert composed.job.data == before.job.data
    assert composed.choices["data"] == "mixture"
