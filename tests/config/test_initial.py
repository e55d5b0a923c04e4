"""`init=` brings model and data of a run along."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

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
