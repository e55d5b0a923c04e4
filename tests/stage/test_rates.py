"""What each parameter learns at, and how much it decays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_job import toy_job, train, weights

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.model.declarations import declarations
from llmfactory.model.skeleton import Skeleton
from llmfactory.optim.schedule.spec import Constant
from llmfactory.optim.spec import Adamw, OptimSpec, Sgd
from llmfactory.stage.rates import decays, layers_below_the_top, lr_factors, matrices


def model(option: str, *more: str) -> Skeleton:
    with torch.device("meta"):
        return compose_job([f"model={option}", "toy=true", *more]).job.model.build()


def optim(**changes: object) -> OptimSpec:
    return Adamw(lr=1.0, schedule=Constant(), **changes)  # type: ignore[arg-type]


def test_layers_learn_less_the_further_down_they_stand() -> None:
    one = model("gpt2_tiny", "data.seq_len=16")
    found = lr_factors(one, optim(layer_decay=0.5), {})
    assert found["embedding.weight"] == found["position.weight"] == 0.125
    by_layer = {name.split(".")[1]: factor for name, factor in found.items() if name.startswith("blocks.")}
    assert by_layer == {"0": 0.25, "1": 0.5}
    assert not any(name.startswith(("norm.", "head.")) for name in found)  # they learn at the rate itself
    assert {name for name, _ in one.named_parameters()} - found.keys() == {"norm.weight", "norm.bias"}


def test_two_towers_are_one_way_through() -> None:
    one = model("bart_base", "stage/objective=denoising", "data.seq_len=32")
    found = layers_below_the_top(one)
    layers = {
        name.rsplit("blocks.", 1)[0] + name.rsplit("blocks.", 1)[1][0]: below
        for name, below in found.items()
        if "blocks." in name
    }
    assert list(layers.values()) == sorted(layers.values(), reverse=True)
    assert set(layers.values()) == {1, 2, 3, 4}


def test_patterns_and_methods_multiply() -> None:
    one = model("llama_tiny", "data.seq_len=16")
    found = lr_factors(
        one, optim(lr_factors={"blocks.0.*": 3.0, "*norm": 5.0, "blocks.1.ffn": 0.0}), {"head.weight": 2.0, "norm.weight": 2.0}
    )
    assert found["norm.weight"] == 10.0
    assert found["head.weight"] == 2.0
    assert all(found[name] == (5.0 if "norm" in name else 3.0) for name in found if name.startswith("blocks.0."))
    assert all(found[name] == 0.0 for name in found if name.startswith("blocks.1.ffn."))


def test_decays_are_declared_and_can_be_given() -> None:
    one = model("gpt2_tiny", "data.seq_len=16")
    declared = declarations(one)
    found = decays(one, optim(weight_decays={"norm": 0.3, "blocks.0": 0.0}), declared)
    assert found["norm.weight"] == 0.3
    assert all(number == 0.0 for name, number in found.items() if name.startswith("blocks.0."))
    assert all(found[name] is declared[name].decay for name in found if name.startswith("blocks.1.") and "norm" not in name)


def test_matrices_are_from_features_to_features() -> None:
    one = model("llama_tiny", "data.seq_len=16")
    assert {name.split(".")[0] for name in matrices(one, declarations(one))} == {"blocks"}


def test_a_pattern_that_means_nothing() -> None:
    with pytest.raises(UserError, match=r"optim\.lr_factors: no parameter is called nose"):
        lr_factors(model("llama_tiny", "data.seq_len=16"), optim(lr_factors={"nose": 2.0}), {})


def test_impossible_numbers() -> None:
    for name, value in (
        ("layer_decay", 1.0),
        ("lr_factors", {"norm": -1.0}),
        ("weight_decays", {"norm": -1.0}),
        ("clip_value", 2.0),
    ):
        with pytest.raises(ConfigError, match=name):
            optim(**{name: value})


def test_a_run_obeys(tmp_path: Path) -> None:
    """With plain gradient descent: what learns at rate zero stays, and nothing moves further than the rate times the bound."""
    spec = Sgd(
        lr=0.1, schedule=Constant(), momentum=0.0, weight_decay=0.0, lr_factors={"blocks": 0.0}, clip_value=1e-3, clip_norm=None
    )
    job = toy_job(tmp_path, optim=spec, trainer__max_steps=1, trainer__eval_every=None, trainer__save_every=None)
    first, _ = train(toy_job(tmp_path, optim=Sgd(lr=1e-30, schedule=Constant()), trainer__max_steps=1), tmp_path / "first")
    moved, _ = train(job, tmp_path / "moved")
    before, after = weights(first), weights(moved)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("blocks."))
    change = (after["embedding.weight"] - before["embedding.weight"]).abs()
    assert 0 < change.max() <= 0.1 * 1e-3 * 1.001
