"""Weights that change in the course of the run."""

from __future__ import annotations

from typing import Any

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError
from llmfactory.data.mix.spec import Curriculum, Transition
from llmfactory.data.spec import Mixture

WEIGHTS = {"a": [1.0, 0.5, 0.0], "b": [0.0, 0.5, 1.0]}


def test_linear_and_step() -> None:
    spec = Curriculum(at=[0.0, 0.5, 0.75], weights=WEIGHTS)
    assert spec.knots({}) == [(0.0, {"a": 1, "b": 0}), (0.5, {"a": 0.5, "b": 0.5}), (0.75, {"a": 0, "b": 1})]
    step = Curriculum(at=[0.0, 0.5, 0.75], weights=WEIGHTS, transition=Transition.step)
    assert [(place, weights["a"]) for place, weights in step.knots({})] == [(0, 1), (0.5, 1), (0.5, 0.5), (0.75, 0.5), (0.75, 0)]


def test_it_is_spread_over_the_run_or_a_number_of_steps() -> None:
    assert Curriculum(at=[0.0], weights={"a": [1.0]}).span(700) == 700
    assert Curriculum(at=[0.0], weights={"a": [1.0]}, horizon=50).span(700) == 50


def test_it_is_written_on_the_command_line() -> None:
    line = ["data/source=[pydocs,pycode]", "data/mix=curriculum", "data.mix.weights={pydocs: [1, 0], pycode: [0, 1]}"]
    data = compose_job(line).job.data
    assert isinstance(data, Mixture)
    assert data.mix == Curriculum(at=[0.0, 1.0], weights={"pydocs": [1.0, 0.0], "pycode": [0.0, 1.0]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"at": []},
        {"at": [0.1, 0.5, 1.0]},
        {"at": [0.0, 0.5, 0.5]},
        {"at": [0.0, 0.7, 0.5]},
        {"at": [0.0, 0.5, 1.5]},
        {"at": [0.0, 0.5]},
        {"weights": {"a": [1.0, 0.0, 1.0], "b": [1.0, 0.0, 1.0]}},
        {"weights": {"a": [1.0, -1.0, 1.0]}},
        {"horizon": 0},
    ],
)
def test_what_cannot_be_is_said(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Curriculum(**{"at": [0.0, 0.5, 1.0], "weights": WEIGHTS, **wrong})
