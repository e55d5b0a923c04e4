"""Weights that are given."""

from __future__ import annotations

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError
from llmfactory.data.mix.spec import Fixed
from llmfactory.data.spec import Mixture

SOURCES = "data/source=[pydocs,pycode]"


def test_weights_and_their_absence() -> None:
    assert Fixed(weights={"a": 3, "b": 1}).knots({"a": 1, "b": 2}) == [(0.0, {"a": 3, "b": 1})]
    assert Fixed().knots({"a": 1, "b": 2}) == [(0.0, {"a": 1.0, "b": 1.0})]


def test_it_is_written_on_the_command_line() -> None:
    line = [SOURCES, "data/mix=fixed", "data.mix.weights={pydocs: 3, pycode: 1}", "data.mix.max_epochs={pycode: 1.5}"]
    data = compose_job(line).job.data
    assert isinstance(data, Mixture)
    assert data.mix == Fixed(weights={"pydocs": 3.0, "pycode": 1.0}, max_epochs={"pycode": 1.5})


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.mix.weights={pydocs: 3}", "every source needs a weight, and only they: pycode has none"),
        ("data.mix.weights={pydocs: 3, pycode: 1, web: 2}", "web is no source of data.sources"),
        ("data.mix.weights={pydocs: -1, pycode: 1}", "the weight of 'pydocs' must be a number from 0 on"),
        ("data.mix.weights={pydocs: 0, pycode: 0}", "all weights are 0"),
        ("data.mix.max_epochs={pydocs: 0}", "must be greater than 0"),
        ("data.mix.max_epochs={web: 1}", "'web' is no source: pydocs, pycode"),
    ],
)
def test_what_cannot_be_is_said(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose_job([SOURCES, "data/mix=fixed", override])
    assert told in str(error.value)
    for problem in error.value.problems:
        if problem.repair:
            compose_job([SOURCES, "data/mix=fixed", problem.repair])
