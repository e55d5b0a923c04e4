"""One case: five optimizer steps under its layout, compared with a single process that takes each step whole.

Compared are the loss and the gradient norm of each step, the held-out loss in between, and every weight in the end, on every
process. The reference is trained once for all layouts and kept in a file, so that the processes of a layout can compare for
themselves and need not send weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import CLIP, WORKLOADS, Case, make
from toy_job import Memory, Notes

from llmfactory.config.spec import Job
from llmfactory.core.batch import IGNORE
from llmfactory.run import fit as fitting
from llmfactory.run import supply
from llmfactory.run.saving import Saving
from llmfactory.stage.rows import read_data

STEPS = 5
EXACT = 1e-9
"""Largest relative difference in float64: some hundred roundings of 1e-16, multiplied up by five steps of Adam."""
BF16 = 0.03
"""For products in bfloat16. The order of sums alone, micro-batches of two rows in a single process against whole steps, changes
losses by up to 0.002 and gradient norms by up to 0.007 (measured over all workloads; where a router's choice flips, by twice
that): see `test_what_the_order_of_sums_does_in_bf16`."""
FLOAT32 = 1e-5
ALL = ("loss", "norm", "held_out", "weights")
WHAT = {"bf16_mixed": ("loss", "norm", "held_out", "together")}
"""What is compared of a variant. In bfloat16 all weights are taken together: a bias of keys, say, has no gradient but rounding, and
Adam makes steps of full size of it."""


@dataclass(frozen=True)
class Numbers:
    """What training gave."""

    losses: list[float]
    norms: list[float]
    held_out: list[float]
    weights: dict[str, torch.Tensor]


def train(case: Case, folder: Path, precision: str = "fp64") -> Numbers:
    """The numbers of a case, on this process."""
    return train_job(make(case, folder, precision), folder / f"{case.file}_{precision}", WORKLOADS[case.workload].pictures)


def train_job(job: Job, folder: Path, pictures: bool = False) -> Numbers:
    tracker = Memory()
    with _without_saving(), _with_pictures(job) if pictures else _as_it_is():
        data = read_data(job, None, job.stage.objective.specials())
        fitted = fitting.fit(job, data, folder, tracker, Notes())
    rows = tracker.rows.values()
    weights = {name: parameter.detach().clone() for name, parameter in fitted.model.named_parameters()}
    return Numbers(
        [row["loss"] for row in rows if "loss" in row],
        [row["grad_norm"] for row in rows if "grad_norm" in row],
        [row["held_out_loss"] for row in rows if "held_out_loss" in row],
        weights,
    )


def reference(case: Case, folder: Path, precision: str = "fp64") -> Path:
    """The file with the numbers of the single process; trained if nobody did so before."""
    path = folder / f"{case.reference.file}_{precision}.pt"
    if not path.exists():
        numbers = train(case.reference, folder, precision)
        check_reference(numbers, case)
        own = path.with_suffix(f".{os.getpid()}")
        torch.save(dataclasses.asdict(numbers), own)
        own.replace(path)
    return path


def check_reference(numbers: Numbers, case: Case) -> None:
    """That there is something to compare: clipping is at work, and most of what is trained has moved apart."""
    assert len(numbers.losses) == STEPS
    assert len(numbers.held_out) == 1
    assert min(numbers.norms) > 2 * CLIP, f"{case.name}: clipping is not at work: {numbers.norms}"
    assert len(set(numbers.losses)) == STEPS


def differences(ours: Numbers, theirs: Numbers) -> dict[str, float]:
    """The largest relative differences: of `loss`, `norm`, `held_out` over steps, of `weights` over parameters, and of all weights
    `together`, as one vector."""
    assert ours.weights.keys() == theirs.weights.keys()
    found = {
        "loss": _apart(ours.losses, theirs.losses),
        "norm": _apart(ours.norms, theirs.norms),
        "held_out": _apart(ours.held_out, theirs.held_out),
        "weights": 0.0,
    }
    squares = [0.0, 0.0]
    for name, weight in theirs.weights.items():
        squares[0] += float((ours.weights[name] - weight).square().sum())
        squares[1] += float(weight.square().sum())
        # The floor is for biases of keys, which have no gradient but rounding: they stay at zero but for rounding.
        apart = _number(float((ours.weights[name].double() - weight.double()).norm() / (weight.double().norm() + 1e-3)))
        if apart > found["weights"]:
            found["weights"], found["where"] = apart, name  # type: ignore[assignment]
    found["together"] = _number((squares[0] / squares[1]) ** 0.5)
    return found


def prove(
    case: Case, folder: Path, precision: str = "fp64", job: Job | None = None, known: Path | None = None
) -> dict[str, float]:
    """Called by every process of a layout: its differences from the reference, which stands in the folder already.

    `job` and `known`: what the case is composed to, and its reference, so that not every process has to find out; None: it has.
    """
    job, known = job or make(case, folder, precision), known or reference(case, folder, precision)
    numbers = train_job(job, folder / f"{case.file}_{precision}", WORKLOADS[case.workload].pictures)
    return differences(numbers, Numbers(**torch.load(known)))


def insist(found: dict[str, float], tolerance: float, names: tuple[str, ...] = ALL) -> None:
    for name in names:
        assert found[name] <= tolerance, f"{name} differ by {found[name]:.3g} (at most {tolerance:g}): {found}"


def _apart(ours: list[float], theirs: list[float]) -> float:
    assert len(ours) == len(theirs)
    return max((_number(abs(one - other) / abs(other)) for one, other in zip(ours, theirs, strict=True)), default=0.0)


def _number(apart: float) -> float:
    """Infinite where it is no number, so that it is the largest difference of all."""
    return apart if apart == apart else float("inf")


# ---- what a proof needs besides the product


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _without_saving() -> Iterator[None]:
    """Checkpoints have tests of their own."""
    plain = Saving._save
    Saving._save = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Saving._save = plain  # type: ignore[method-assign]


class _Pictures:
    """Rows with a picture each, since no data of the catalogue have pictures yet: its placeholders stand first in the row."""

    SIZE, VECTORS = 8, 4

    def __init__(self, rows: Any, token: int) -> None:
        self.rows, self.token = rows, token

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Any) -> Any:
        return self._seen(self.rows.read(indices), indices)

    def draw(self, indices: Any, samples: Any) -> Any:
        return self._seen(self.rows.draw(indices, samples), indices)

    def _seen(self, batch: Any, indices: Any) -> Any:
        batch["tokens"][:, : self.VECTORS] = self.token
        batch["labels"][:, : self.VECTORS] = IGNORE
        numbers = [torch.Generator().manual_seed(int(index)) for index in indices]
        shape = (1, 3, self.SIZE, self.SIZE)
        batch["images"] = torch.stack([torch.randn(shape, generator=number, dtype=torch.float64) for number in numbers])
        return batch


@contextmanager
def _with_pictures(job: Job) -> Iterator[None]:
    plain = supply.task_rows
    weights = job.precision.build("cpu").weights

    class Rows(_Pictures):
        def _seen(self, batch: Any, indices: Any) -> Any:
            batch = super()._seen(batch, indices)
            batch["images"] = batch["images"].to(weights)
            return batch

    supply.task_rows = lambda job, *rest: Rows(plain(job, *rest), job.model.image_token)  # type: ignore[assignment]
    try:
        yield
    finally:
        supply.task_rows = plain
