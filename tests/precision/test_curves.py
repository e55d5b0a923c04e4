"""The loss of each precision beside that of float32, step by step, within a stated band."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.data.prepared import Prepared
from llmfactory.optim.schedule.spec import Cosine
from llmfactory.optim.spec import Adamw
from llmfactory.precision.spec import (
    Bf16Mixed,
    Bf16True,
    Fp8,
    Fp16Mixed,
    Fp32,
    Fp64,
    Int8Mixed,
    PrecisionSpec,
    Recipe,
    Rounding,
)
from llmfactory.run.fit import fit


@dataclass(frozen=True)
class Band:
    precision: PrecisionSpec
    short: float
    """Largest difference of the loss from float32's, as a share of it, in 20 steps."""
    long: float
    """The same of means of 10 steps, in 200 steps."""


BANDS = {
    "fp64": Band(Fp64(), 1e-6, 2e-5),
    "bf16_mixed": Band(Bf16Mixed(), 3e-4, 1e-3),
    "fp16_mixed": Band(Fp16Mixed(), 5e-5, 3e-4),
    "bf16_true nearest": Band(Bf16True(keep=Rounding.nearest), 0.02, 0.2),
    "bf16_true stochastic": Band(Bf16True(), 4e-3, 8e-3),
    "bf16_true compensated": Band(Bf16True(keep=Rounding.compensated), 1e-3, 3e-3),
    "bf16_true master": Band(Bf16True(keep=Rounding.master), 1e-3, 3e-3),
    "fp8 tensor_wise": Band(Fp8(emulate=True), 1e-3, 0.01),
    "fp8 row_wise": Band(Fp8(emulate=True, recipe=Recipe.row_wise), 1.5e-3, 0.01),
    "int8_mixed": Band(Int8Mixed(), 4e-4, 2e-3),
    "int8_mixed stochastic": Band(Int8Mixed(stochastic=True), 3e-4, 2e-3),
}
"""Two to four times what the worst of three seeds was off by (docs/precision.md)."""


def losses(precision: PrecisionSpec, steps: int, folder: Path) -> list[float]:
    few = {"trainer__eval_every": None, "trainer__keep_best": False, "trainer__save_every": None}
    optim = Adamw(lr=3e-3, schedule=Cosine(warmup_steps=5, horizon=200))
    job = toy_job(folder, precision=precision, optim=optim, trainer__max_steps=steps, **few)
    tracker = Memory()
    fit(job, DATA.setdefault(folder, prepared(job)), folder / f"{id(precision)}_{steps}", tracker, Notes())
    return [row["loss"] for row in tracker.rows.values()]


DATA: dict[Path, Prepared] = {}


def means(values: list[float], of: int) -> list[float]:
    return [sum(values[start : start + of]) / of for start in range(0, len(values), of)]


def apart(ours: list[float], theirs: list[float]) -> float:
    return max(abs(one - other) / other for one, other in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("curves")


@pytest.fixture(scope="module")
def short(folder: Path) -> list[float]:
    return losses(Fp32(), 20, folder)


@pytest.mark.parametrize("name", BANDS)
def test_20_steps(name: str, short: list[float], folder: Path) -> None:
    found = losses(BANDS[name].precision, 20, folder)
    assert found != short, "it must change something"
    assert apart(found, short) <= BANDS[name].short


@pytest.fixture(scope="module")
def long(folder: Path) -> list[float]:
    found = losses(Fp32(), 200, folder)
    assert found[-1] < 0.5 * found[0], "there must be something to learn"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", BANDS)
def test_200_steps(name: str, long: list[float], folder: Path) -> None:
    found = losses(BANDS[name].precision, 200, folder)
    assert apart(means(found, 10), means(long, 10)) <= BANDS[name].long
