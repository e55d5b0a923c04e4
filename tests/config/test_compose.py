"""From a command line to a job: what is accepted, what is refused, and where each value came from."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_configs import ELSEWHERE, NEEDS, class_behind

from llmfactory.config.choices import spelled_out
from llmfactory.config.compose import compose_job, search_path
from llmfactory.config.register import groups, options
from llmfactory.core.errors import ConfigError, Problem


def problems(*overrides: str, config_dirs: tuple[Path, ...] = ()) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as raised:
        compose_job(overrides, config_dirs)
    return {problem.path: problem for problem in raised.value.problems}


def bare(plain: object) -> object:
    """Without the names of types, which Hydra's config does not hold."""
    if isinstance(plain, dict):
        return {key: bare(value) for key, value in plain.items() if key != "type"}
    return plain


def one_of_each_class(group: str) -> list[str]:
    """Of the options that fill in the same class, the first: each costs Hydra a third of a second."""
    return list({class_behind(group, option): option for option in reversed(options(group))}.values())


LINES = [
    [f"{group}={option}"]
    for group in groups()
    for option in (options(group) if group == "experiment" else [*one_of_each_class(group), *options(group)[::12]])
    if (group, option) != ("stage", "profile")  # which Hydra never sees: config/profiled.py
] + [
    ["model=llama3_1_8b"],
    ["model=deepseek_v2_lite"],
    ["model=gpt2", "model/norm=rms_norm", "model.norm.eps=1e-3", "optim.lr=0.5", "name=x", "tracking=wandb", "tracking.tags=[a]"],
    ["experiment=gpt2_shakespeare_style", "model/ffn=geglu", "trainer.max_steps=7"],
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_same_as_hydras_own_composition(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go into our own tree, not through OmegaConf's merge; the result must be the same, for sweeps go through Hydra."""
    monkeypatch.setattr("llmfactory.config.rules.RULES", ())
    line = ELSEWHERE.get(line[0], [*line, *NEEDS.get(line[0], [])])
    told = [
        f"++{part}" if "={" in part or part.startswith("stage.steps.") else part
        for override in line
        for part in spelled_out(override)
    ]  # as sweeps hand it on
    hydra = ConfigLoaderImpl(search_path()).load_configuration("config", list(dict.fromkeys(told)), RunMode.RUN)
    with open_dict(hydra):
        del hydra["hydra"]
    theirs = OmegaConf.to_container(hydra, resolve=True, enum_to_str=True)
    assert bare(compose_job(line).plain) == theirs


def test_everything_at_once() -> None:
    found = problems(
        "model=lama",
        "model/atention=gqa",
        "optim.lr=fast",
        "trainer.max_step=5",
        "+trainer.no_such=1",
        "++optim.no_such=1",
        "data.seq_len=1",
        "trainer.batch_size=0",
        "stage=generate",
        "--dashed",
    )
    assert set(found) == {
        "model",
        "model/atention",
        "optim.lr",
        "trainer.max_step",
        "trainer.no_such",
        "optim.no_such",
        "data.seq_len",
        "trainer.batch_size",
        "stage.prompt",
        "command line",
    }


def test_plus_is_accepted_where_the_key_exists() -> None:
    assert compose_job(["+optim.lr=0.5", "++trainer.max_steps=9"]).job.optim.lr == 0.5


@pytest.mark.parametrize(
    "text", ["def read(", "a,b: {c", "it's", "x = [1, 2", "100%", "'", 'a "quoted" word', "${", "a\nb", "(", "}"]
)
def test_what_the_grammar_cannot_read_is_a_text_where_a_text_belongs(text: str) -> None:
    job = compose_job([f"stage.sample_prompt={text}"]).job
    assert job.stage.sample_prompt == text


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("007", "007"),
        ("1e-3", "1e-3"),
        ("true", "true"),
        ("'a, b'", "a, b"),
        ('"null"', "null"),
        ("a b", "a b"),
        ("[1]", "[1]"),
        ("{a: 1}", "{a: 1}"),
    ],
)
def test_texts_stay_as_typed(typed: str, text: str) -> None:
    assert compose_job([f"stage.sample_prompt={typed}"]).job.stage.sample_prompt == text
    assert compose_job(["stage.sample_prompt=null"]).job.stage.sample_prompt is None


def test_other_keys_need_what_the_grammar_can_read() -> None:
    found = problems("optim.lr=(", "trainer.max_steps={")
    assert "must be a number" in found["optim.lr"].reason
    assert "must be a whole number" in found["trainer.max_steps"].reason


def test_values_of_a_sweep_need_a_sweep() -> None:
    found = problems("optim.lr=1,2", "model=gpt2,gpt2_tiny", "seed=range(3)")
    assert set(found) == {"optim.lr", "model", "seed"}
    assert all("-m" in problem.reason for problem in found.values())


def test_types_are_chosen_by_groups() -> None:
    found = problems("model.attention=gqa_kv8", "model.ffn.type=mlp", "optim._target_=torch.optim.AdamW")
    assert found["model.attention"].repair == "model/attention=gqa_kv8"
    assert "model/ffn" in found["model.ffn.type"].reason
    assert found["optim._target_"].repair == "optim=adamw"


def test_a_key_of_another_option() -> None:
    assert problems("stage.prompt=x")["stage.prompt"].repair == "stage=generate stage.prompt=x"
    assert (
        problems("model=gpt2", "model.position.theta=5")["model.position.theta"].repair
        == "model/position=rope model.position.theta=5"
    )


def test_deletion() -> None:
    found = problems("~optim.clip_norm", "~optim.lr", "~tracking", "~no.such")
    assert found["optim.clip_norm"].repair == "optim.clip_norm=null"
    assert found["tracking"].repair == "tracking=none"
    assert set(found) == {"optim.clip_norm", "optim.lr", "tracking", "no.such"}
    assert compose_job(["~experiment"]).choices.get("experiment") is None


def test_hydras_own_settings_are_for_sweeps() -> None:
    found = problems("hydra.run.dir=x", "hydra/launcher=joblib", "hydra.searchpath=[x]", "hydra.verbose=true")
    assert found["hydra.run.dir"].repair == "output_dir=x"
    assert "--config-dir" in found["hydra.searchpath"].reason
    assert "-m" in found["hydra/launcher"].reason


def test_references() -> None:
    job = compose_job(
        ["name=run-${model.dim}-${optim.lr}", "optim.lr=0.003", "model.dim=96", "model.ffn.hidden=${model.dim}"]
    ).job
    assert job.name == "run-96-0.003"
    assert job.model.ffn.hidden == 96
    assert "cannot be filled in" in problems("name=${no.such}")["name"].reason
    assert "whole number" in problems("seed=${output_dir}")["seed"].reason


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_options_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path, "model/mine", "# Mine.\ndefaults: [llama_tiny, override attention: gqa_biased, _self_]\nn_layers: 2\n")
    composed = compose_job(["model=mine"], [tmp_path])
    assert (composed.job.model.n_layers, composed.job.model.attention.bias) == (2, True)
    assert composed.origins["model.n_layers"] == os.path.relpath(tmp_path / "model/mine.yaml")


def test_one_name_in_two_folders_names_both_files(tmp_path: Path) -> None:
    mine = write(tmp_path, "model/gpt2", "dim: 3\n")
    problem = problems("model=gpt2", config_dirs=(tmp_path,))["model/gpt2"]
    assert str(mine) in str(problem)
    assert "conf/model/gpt2.yaml" in str(problem)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in problems(config_dirs=(tmp_path / "none",))["--config-dir"].reason


def test_broken_yaml_is_told_alone_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "model/broken", "# Broken.\ndim: 3\nn_layers: [1, 2\nvocab_size: 5\n")
    found = problems("model=broken", config_dirs=(tmp_path,))
    assert len(found) == 1
    (problem,) = found.values()
    assert "broken.yaml, line" in problem.path
    assert "is no YAML" in problem.reason


def test_wrong_keys_and_values_in_a_file_name_the_file(tmp_path: Path) -> None:
    write(tmp_path, "model/wrong", "# Wrong.\ndefaults: [llama_tiny, _self_]\nn_layer: 2\ndim: wide\nattention: {n_heds: 4}\n")
    found = problems("model=wrong", config_dirs=(tmp_path,))
    assert set(found) == {"model.n_layer", "model.dim", "model.attention.n_heds"}
    assert all("wrong.yaml" in problem.reason for problem in found.values())


def test_a_part_swapped_on_the_command_line_under_a_file_that_sets_the_old_ones_key(tmp_path: Path) -> None:
    write(
        tmp_path,
        "experiment/base_100",
        "# @package _global_\n# Another base.\ndefaults: [override /model: llama_tiny, _self_]\nmodel: {position: {theta: 100.0}}\n",
    )
    assert compose_job(["experiment=base_100"], [tmp_path]).job.model.position.theta == 100.0
    problem = problems("experiment=base_100", "model/position=learned", config_dirs=(tmp_path,))["model.position.theta"]
    assert "base_100.yaml sets it" in problem.reason
    assert "model/position=learned on the command line" in problem.reason


def test_a_model_on_the_command_line_that_lacks_an_experiments_part(tmp_path: Path) -> None:
    write(
        tmp_path,
        "model/bare",
        "# Needs nothing.\ndefaults: [/schema/model/model_spec@_here_, _self_]\nvocab_size: 5\ndim: 2\nmax_positions: 4\n",
    )
    write(tmp_path, "experiment/ffn", "# @package _global_\n# Another.\ndefaults: [override /model/ffn: geglu, _self_]\n")
    problem = problems("experiment=ffn", "model=bare", config_dirs=(tmp_path,))["model/ffn"]
    assert "experiment/ffn.yaml" in problem.reason
    assert "model=bare" in problem.reason


def test_a_defaults_list_that_names_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, "model/lost", "# Lost.\ndefaults: [/schema/model/decoder_only@_here_, norm: no_such_norm, _self_]\n")
    assert "model/norm/no_such_norm" in str(problems("model=lost", config_dirs=(tmp_path,)))


def test_two_types_at_one_place(tmp_path: Path) -> None:
    write(
        tmp_path,
        "model/norm/both",
        "# Two.\ndefaults: [/schema/model/norm/rms_norm@_here_, /schema/model/norm/layer_norm@_here_, _self_]\n",
    )
    assert "a part has one type" in problems("model/norm=both", config_dirs=(tmp_path,))["model.norm"].reason


def test_another_primary_config(tmp_path: Path) -> None:
    write(tmp_path, "mine", "# Mine.\ndefaults: [config, override model: gpt2_tiny, _self_]\nseed: 5\n")
    job = compose_job([], [tmp_path], "mine").job
    assert (job.seed, job.model.dropout) == (5, 0.0)
    with pytest.raises(ConfigError, match="no such file"):
        compose_job([], [], "no_such")


def test_origins() -> None:
    composed = compose_job(
        ["experiment=gpt2_shakespeare_style", "data.source.files=[a.txt]", "seed=4", "model/norm=rms_norm", "toy=true"]
    )
    expected = {
        "seed": "command line",
        "model.dropout": "conf/experiment/gpt2_shakespeare_style.yaml",
        "model.dim": "toy",
        "model.init_std": "conf/model/gpt2_tiny.yaml",
        "model.depth_scaled_init": "default",
        "model.attention.bias": "conf/model/attention/gqa_biased.yaml",
        "model.norm.": "conf/model/norm/rms_norm.yaml, chosen by command line",
        "data.tokenizer.": "conf/data/tokenizer/bytes.yaml, chosen by conf/experiment/gpt2_shakespeare_style.yaml",
    }
    assert {key: composed.origins[key] for key in expected} == expected


def test_choices() -> None:
    choices = compose_job(["model=gpt2", "model/norm=rms_norm"]).choices
    assert (choices["model"], choices["model/norm"], choices["data"]) == ("gpt2", "rms_norm", "pydocs")


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose_job(["name=x"])
    problems("model=no_such")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_value_of_a_key_that_must_be_given_is_told_once() -> None:
    found = problems("data=text", "data.source.files=a.txt", "optim.lr=x")
    assert sorted(found) == ["data.source.files", "optim.lr"]
    with pytest.raises(ConfigError) as raised:
        compose_job(["data=text", "data.source.files=a.txt"])
    assert len(raised.value.problems) == 1
    with pytest.raises(ConfigError, match="is no encoding that Python knows"):
        compose_job(["data=text", "data.source.files=[a.txt]", "data.source.encoding=hex"])


@pytest.mark.parametrize(
    ("line", "repair"),
    [
        (["optim.betas=0.9"], "optim.betas=[0.9,0.95]"),
        (["num_train_epochs=3"], "trainer.max_steps=500"),
        (["stage=generate", "init=.", "stage.prompt=null"], "stage.prompt=text"),
        (["data.held_out=-1"], "data.held_out=0.05"),
        (["model.dim=0"], "model.dim=128"),
        (["trainer.device=gpu"], "trainer.device=cuda"),
        (["lr_scheduler_type=linear"], "optim/schedule=linear"),
        (["trainer.precision=bf16"], "precision=bf16_mixed"),
        (["optim..lr=1"], "optim.lr=1"),
        (["optim.lr=inf"], "optim.lr=0.006"),
        (["model.attention.heads=8"], "model.attention.n_heads=8"),
        (["stage=generate", "init=.", "stage.prompt=Hello, world"], "stage.prompt='Hello, world'"),
        (["data=text", "data.source.files=[ä.txt,~/b.txt]"], "data.source.files=['ä.txt','~/b.txt']"),
    ],
)
def test_repairs_that_compose(line: list[str], repair: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_job(line)
    (problem,) = caught.value.problems
    assert problem.repair is not None
    assert shlex.split(problem.repair) == [repair]
    key = repair.partition("=")[0]
    compose_job([*(word for word in line if word.partition("=")[0] != problem.path and word.partition("=")[0] != key), repair])


@pytest.mark.parametrize("line", [["foo=1"], ["stage.objective.foo=1"], ["type=Job"]])
def test_nothing_is_suggested_where_nothing_is_near(line: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_job(line)
    assert [problem.repair for problem in caught.value.problems] == [None]
