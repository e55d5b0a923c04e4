"""Parts of skeletons that hold several stacks: chosen, set, repaired and described by their place."""

from __future__ import annotations

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.config.register import conf_folder, options
from llmfactory.core.errors import ConfigError
from llmfactory.model.attention.spec import Cross, Gqa
from llmfactory.model.position.spec import Rope

BART = ["model=bart_base", "stage=describe"]
SIDES = {"encoder": "bart_base", "decoder": "bart_base"}
"""Stacks within skeletons, and a preset that has them."""
GROUPS = {"cross": "attention"}
"""Groups of parts whose field has another name."""


def problems(*overrides):
    with pytest.raises(ConfigError) as error:
        compose_job([*BART, *overrides])
    return {problem.path: problem for problem in error.value.problems}


def test_a_part_of_one_side_is_chosen_and_set():
    line = ["model/attention@model.encoder.attention=gqa", "model.encoder.attention.n_kv_heads=4"]
    line += ["model/position@model.decoder.position=rope_500k", "model.decoder.position.theta=100.0"]
    model = compose_job([*BART, *line]).job.model
    assert model.encoder.attention == Gqa(n_heads=12, n_kv_heads=4)
    assert model.decoder.attention == Gqa(n_heads=12, bias=True)
    assert model.decoder.position == Rope(theta=100.0)
    assert model.decoder.cross == Cross(n_heads=12, bias=True)


def test_kinds_of_layers_in_one_side(tmp_path):
    (tmp_path / "model").mkdir()
    text = """# Mine.    llmfactory model=mine
defaults:
  - /schema/model/encoder_decoder@_here_
  - embedding: token
  - /schema/model/tower_spec@encoder
  - norm@encoder.norm: rms_norm
  - position@encoder.position: t5_bias
  - attention@encoder.attention: gqa
  - ffn@encoder.ffn: mlp_relu
  - /schema/model/layer_spec@encoder.others.wide
  - ffn@encoder.others.wide.ffn: swiglu
  - block@encoder.block: pre_norm
  - /schema/model/tower_spec@decoder
  - norm@decoder.norm: rms_norm
  - position@decoder.position: t5_bias
  - attention@decoder.attention: gqa
  - attention@decoder.cross: cross
  - ffn@decoder.ffn: mlp_relu
  - block@decoder.block: pre_norm
  - head: lm
  - _self_
vocab_size: 300
dim: 16
max_positions: 512
encoder: {n_layers: 4, attention: {n_heads: 2}, ffn: {hidden: 8}, pattern: [base, wide], others: {wide: {ffn: {hidden: 12}}}}
decoder: {n_layers: 2, attention: {n_heads: 2}, cross: {n_heads: 2}, ffn: {hidden: 8}}
"""
    (tmp_path / "model/mine.yaml").write_text(text, encoding="utf-8")
    line = [
        "model=mine",
        "stage=describe",
        "model.encoder.others.wide.ffn.hidden=20",
        "model/ffn@model.encoder.others.wide.ffn=geglu",
    ]
    model = compose_job(line, [tmp_path]).job.model
    assert [kind.ffn.hidden for kind in model.encoder.kinds()] == [8, 20, 8, 20]
    assert model.encoder.others["wide"].ffn.activation.name == "gelu_tanh"


@pytest.mark.parametrize(
    ("override", "path", "repair"),
    [
        ("model.encoder.attention.n_head=6", "model.encoder.attention.n_head", "model.encoder.attention.n_heads=6"),
        ("model.encoder.attention.n_heads=7", "model.encoder.attention.n_heads", "model.encoder.attention.n_heads=6"),
        ("model.encoder.attention=gqa", "model.encoder.attention", "model/attention@model.encoder.attention=gqa"),
        ("model.attention.n_heads=6", "model.attention.n_heads", "model.encoder.attention.n_heads=6"),
        ("model/attention=gqa", "model/attention", "model/attention@model.decoder.attention=gqa"),
        (
            "model/attention@model.encoder.attention=gpa",
            "model/attention@model.encoder.attention",
            "model/attention@model.encoder.attention=gqa",
        ),
    ],
)
def test_mistakes_are_answered_by_what_composes(override, path, repair):
    found = problems(override)
    assert found[path].repair == repair
    compose_job([*BART, repair])


def test_the_description_knows_where_a_value_of_one_side_comes_from():
    composed = compose_job([*BART, "model/attention@model.encoder.attention=gqa", "model.encoder.n_layers=2"])
    assert composed.origins["model.encoder.n_layers"] == "command line"
    assert composed.origins["model.encoder.attention."] == "conf/model/attention/gqa.yaml, chosen by command line"
    assert composed.origins["model.decoder.attention."].startswith("conf/model/attention/gqa_biased.yaml")
    assert composed.origins["model.decoder.n_layers"] == "conf/model/bart_base.yaml"
    assert composed.choices["model/attention@model.encoder.attention"] == "gqa"


def types(group):
    """One option of each spec class of a group."""
    found = {}
    for option in options(group):
        text = (conf_folder() / group / f"{option}.yaml").read_text(encoding="utf-8")
        found.setdefault(text.split("/schema/")[1].split("@")[0], option)
    return found.values()


@pytest.mark.parametrize("part", ["norm", "position", "attention", "ffn", "block", "cross"])
@pytest.mark.parametrize("side", SIDES)
def test_every_type_of_a_part_of_a_side_composes_or_is_refused_with_a_way_out(side, part):
    preset, group = SIDES[side], f"model/{GROUPS.get(part, part)}"
    if f"{group}@model.{side}.{part}" not in compose_job([f"model={preset}", "stage=describe"]).choices:
        assert part == "cross"
        return
    for option in types(group):
        line = [f"model={preset}", "stage=describe", f"{group}@model.{side}.{part}={option}"]
        for _ in range(3):  # a part that is refused for what it is may have been refused for its numbers before
            try:
                compose_job(line)
                break
            except ConfigError as error:
                repairs = [problem.repair for problem in error.problems if problem.repair and problem.path.startswith("model.")]
            assert repairs, f"{line} is refused without a way out"
            line += repairs
        else:
            pytest.fail(f"{line} is still refused")
