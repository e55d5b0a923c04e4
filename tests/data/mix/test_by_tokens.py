"""Weights from sizes."""

from __future__ import annotations

import pytest

from llmfactory.core.errors import ConfigError
from llmfactory.data.mix.spec import ByTokens

SIZES = {"en": 1_000_000, "de": 10_000, "sw": 100}


def shares(spec: ByTokens, sizes: dict[str, int] | None = None) -> list[float]:
    ((place, weights),) = spec.knots(sizes or SIZES)
    assert place == 0
    return [weight / sum(weights.values()) for weight in weights.values()]


def test_in_proportion_to_tokens() -> None:
    assert shares(ByTokens()) == pytest.approx([1_000_000 / 1_010_100, 10_000 / 1_010_100, 100 / 1_010_100])


def test_a_temperature_favors_the_small() -> None:
    assert shares(ByTokens(temperature=2)) == pytest.approx([1000 / 1110, 100 / 1110, 10 / 1110])
    assert shares(ByTokens(temperature=1e9)) == pytest.approx([1 / 3] * 3)


def test_a_cap_bounds_the_large() -> None:
    assert shares(ByTokens(cap=10_000)) == pytest.approx([10_000 / 20_100, 10_000 / 20_100, 100 / 20_100])


def test_sources_of_any_size() -> None:
    assert shares(ByTokens(temperature=0.1), {"a": 10**13, "b": 10**12}) == pytest.approx([1, 0], abs=1e-9)
    assert shares(ByTokens(), {"a": 5, "none": 0}) == [1, 0]


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"temperature": -1}, {"cap": 0}])
def test_what_cannot_be_is_said(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ByTokens(**wrong)  # type: ignore[arg-type]
