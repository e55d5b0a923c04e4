"""Ways to merge models, beside plain NumPy from the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from llmfactory.core.errors import ConfigError
from llmfactory.core.sharding import name_seed
from llmfactory.stage.merge_spec import Merge
from llmfactory.stage.method.dare import thinned
from llmfactory.stage.method.spec import Dare, Linear, MethodSpec, Slerp, TaskArithmetic, Then, Ties
from llmfactory.stage.method.ties import trimmed

Array = NDArray[np.float64]
WEIGHTS = {"init": 1.0, "a": 2.0, "b": 0.5, "c": -1.0}


def tensors(shape: tuple[int, ...] = (5, 7), seed: int = 0) -> tuple[Array, dict[str, Array]]:
    draw = np.random.default_rng(seed)
    base = draw.normal(size=shape)
    return base, {name: base + draw.normal(size=shape) for name in "abc"}


def merged(spec: MethodSpec, base: Array, others: dict[str, Array], weights: dict[str, float]) -> Array:
    found = spec.build(3).merged("w", torch.from_numpy(base), {n: torch.from_numpy(o) for n, o in others.items()}, weights)
    assert found.dtype == torch.float64
    return found.numpy()


def test_linear_is_the_weighted_mean() -> None:
    base, others = tensors()
    total = base + 2 * others["a"] + 0.5 * others["b"] - others["c"]
    np.testing.assert_allclose(merged(Linear(), base, others, WEIGHTS), total / 2.5, rtol=1e-12)
    np.testing.assert_allclose(merged(Linear(normalize=False), base, others, WEIGHTS), total, rtol=1e-12)
    with pytest.raises(ConfigError, match="add up to 0"):
        Merge(method=Linear(), models={"a": "x"}, weights={"a": -1.0})


def test_task_arithmetic_adds_what_was_learned() -> None:
    """Ilharco et al. 2023, section 2."""
    base, others = tensors()
    total = sum(WEIGHTS[name] * (other - base) for name, other in others.items())
    np.testing.assert_allclose(merged(TaskArithmetic(scale=0.3), base, others, WEIGHTS), base + 0.3 * total, rtol=1e-12)
    np.testing.assert_allclose(
        merged(TaskArithmetic(), base, {"a": others["a"]}, {"init": 1.0, "a": 1.0}), others["a"], rtol=1e-12
    )


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_is_on_the_arc(t: float) -> None:
    """Shoemake 1985."""
    base, others = tensors()
    a, b = base.ravel() / np.linalg.norm(base), others["a"].ravel() / np.linalg.norm(others["a"])
    found = merged(Slerp(t=t), base, {"a": others["a"]}, {"init": 1.0, "a": 1.0})
    angle = np.arccos(a @ b)
    expected = (np.sin((1 - t) * angle) * base + np.sin(t * angle) * others["a"]) / np.sin(angle)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    unit = merged(Slerp(t=t), a, {"a": b}, {"init": 1.0, "a": 1.0})
    assert np.linalg.norm(unit) == pytest.approx(1.0)
    assert np.arccos(np.clip(unit @ a, -1, 1)) == pytest.approx(t * angle, abs=1e-7)


@pytest.mark.parametrize(
    ("base", "other", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], [1.0, 2.0]),
        ([1.0, 0.0], [3.0, 0.0], [1.5, 0.0]),
        ([1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]),
        ([0.0], [4.0], [1.0]),
    ],
)
def test_slerp_without_an_arc_is_a_line(base: list[float], other: list[float], expected: list[float]) -> None:
    found = merged(Slerp(t=0.25), np.array(base), {"a": np.array(other)}, {"init": 1.0, "a": 1.0})
    np.testing.assert_allclose(found, expected, atol=1e-12)


def ties(base: Array, others: dict[str, Array], weights: dict[str, float], density: float, scale: float) -> Array:
    """Yadav et al. 2023, algorithm 1, with a weight for each model."""
    trimmed_ = {}
    for name, other in others.items():
        change = (other - base).ravel()
        kept = np.argsort(-np.abs(change), kind="stable")[: int(np.ceil(density * change.size))]
        trimmed_[name] = np.zeros_like(change)
        trimmed_[name][kept] = change[kept]
    mean = np.zeros(base.size)
    for place in range(base.size):
        values = {name: weights[name] * change[place] for name, change in trimmed_.items()}
        sign = np.sign(sum(values.values()))
        agreeing = [name for name, value in values.items() if np.sign(value) == sign != 0]
        if agreeing:
            mean[place] = sum(values[name] for name in agreeing) / sum(abs(weights[name]) for name in agreeing)
    return base + scale * mean.reshape(base.shape)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [dict.fromkeys(WEIGHTS, 1.0), WEIGHTS])
def test_ties_is_the_papers_algorithm(density: float, weights: dict[str, float]) -> None:
    base, others = tensors((6, 9), seed=4)
    found = merged(Ties(density=density, scale=0.7), base, others, weights)
    np.testing.assert_allclose(found, ties(base, others, weights, density, 0.7), rtol=1e-12)


def test_the_largest_changes_are_kept() -> None:
    change = torch.tensor([[0.1, -3.0], [2.0, 0.0]])
    assert trimmed(change, 0.5).tolist() == [[0.0, -3.0], [2.0, 0.0]]
    assert trimmed(change, 0.01).tolist() == [[0.0, -3.0], [0.0, 0.0]]
    assert trimmed(change, 1.0).tolist() == change.tolist()
    assert trimmed(torch.tensor([1.0, 1.0]), 0.5).tolist() == [1.0, 1.0]  # equal ones are equal
    assert trimmed(torch.zeros(3), 0.5).tolist() == [0.0] * 3
    assert trimmed(torch.zeros(0), 0.5).tolist() == []


def test_dare_drops_and_rescales() -> None:
    """Yu et al. 2024, section 3.2: a share p of zeros, and the same expectation."""
    change = torch.ones(40_000)
    found = thinned(change, 0.9, seed=1)
    assert found.unique().tolist() == pytest.approx([0.0, 10.0])
    assert (found == 0).double().mean().item() == pytest.approx(0.9, abs=0.01)
    assert found.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(found, thinned(change, 0.9, seed=1))
    assert not torch.equal(found, thinned(change, 0.9, seed=2))


@pytest.mark.parametrize("then", [Then.linear, Then.ties])
def test_dare_joins_what_is_left(then: Then) -> None:
    base, others = tensors((4, 6))
    left = {}
    for name, other in others.items():
        drawn = torch.rand((4, 6), generator=torch.Generator().manual_seed(name_seed(3, f"{name}:w"))).numpy()
        left[name] = base + (other - base) * (drawn >= 0.6) / (1 - 0.6)
    if then is Then.ties:
        expected = ties(base, left, WEIGHTS, 1.0, 0.5)
    else:
        expected = base + 0.5 * sum(WEIGHTS[name] * (one - base) for name, one in left.items())
    np.testing.assert_allclose(merged(Dare(drop=0.6, then=then, scale=0.5), base, others, WEIGHTS), expected, rtol=1e-12)
    both = {name: dict(others) for name in ("once", "again")}
    assert np.array_equal(*(merged(Dare(), base, one, WEIGHTS) for one in both.values()))


@pytest.mark.parametrize(
    ("spec", "models", "weights", "message"),
    [
        (Slerp(), ["a", "b"], {}, "not to 2"),
        (Slerp(), ["a"], {"a": 2.0}, "stage.method.t"),
        (Ties(), ["a"], {"init": 1.0}, "has no weight"),
        (Linear(), ["a"], {"z": 1.0}, "z is no model's name: there are a, init"),
        (Linear(), [], {}, "names no model"),
        (Linear(), ["init"], {}, "give another one"),
    ],
)
def test_models_and_weights_fit_the_way(spec: MethodSpec, models: list[str], weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Merge(method=spec, models=dict.fromkeys(models, "x"), weights=weights)


@pytest.mark.parametrize("make", [lambda: Slerp(t=2.0), lambda: Ties(density=0.0), lambda: Dare(drop=1.0)])
def test_numbers_in_their_ranges(make: object) -> None:
    with pytest.raises(ConfigError, match="must lie"):
        make()  # type: ignore[operator]
