"""Before a training: does the layout compute what a single process computes?

A small job with the user's own parts, objective, data, optimizer and layout (`config/probe.py`) makes two optimizer steps twice:
under the layout, by all processes together, and in each process alone, which takes each step whole. Loss, gradient norm and every
weight must agree, in float64, where a wrong sum cannot hide behind rounding.

It says nothing about what it makes small or leaves out: the width and the number format of the real run, memory, dropout, compiled
or half-precision kernels, and the weights of `init`.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch

from llmfactory.config.probe import STEPS, probe
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.launch.spec import Single
from llmfactory.parallel.mesh import World
from llmfactory.parallel.spec import Mesh
from llmfactory.run.display import Display, Silent
from llmfactory.run.fit import fit
from llmfactory.stage.rows import Data
from llmfactory.tracking.tracker import Tracker

TOLERANCE = 1e-9
"""Largest relative difference."""
SMALL = 1e-3
"""Norm below which a weight's difference counts absolutely: a bias of keys has no gradient but rounding."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """What two steps gave."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]


def preflight(job: Job, data: Data, folder: Path, world: World, display: Display) -> None:
    """Compare the layout with a single process; called by every process.

    Raises:
        UserError: they differ.
    """
    small, problems = probe(job)
    if small is None:
        raise UserError(f"trainer.preflight=true cannot make this job small: {problems[0]}")
    alone = dataclasses.replace(
        small,
        parallel=Mesh(),
        launch=Single(),
        trainer=dataclasses.replace(small.trainer, micro_batch_size=None),
    )
    place = folder / "preflight"
    try:
        ours = _figures(small, data, place / "together", None)
        whole = _figures(alone, data, place / f"alone_{world.rank}", World(world.device))
        found = max(world.gather(_differences(ours, whole)))
    finally:
        world.once(lambda: shutil.rmtree(place, ignore_errors=True))
    if not found[0] <= TOLERANCE:
        raise UserError(
            f"the preflight failed: in {STEPS} steps of a small model, this layout and a single process differ in {found[1]} by "
            f"{found[0]:.3g} of its size (at most {TOLERANCE:g}), so training under it would compute something else. "
            f"Nothing was trained. Another layout may work; trainer.preflight=false trains under this one all the same"
        )
    display.note(f"preflight: {STEPS} steps of a small model are those of a single process (largest difference {found[0]:.1e})")


def _figures(job: Job, data: Data, folder: Path, world: World | None) -> Figures:
    """`world`: where to train; None: where the job says."""
    tracker = _Kept()
    fitted = fit(job, data, folder, tracker, Silent(notes=False), world)
    rows = [tracker.rows[step] for step in sorted(tracker.rows)]
    weights = {name: parameter.detach() for name, parameter in fitted.model.named_parameters()}
    return Figures([row["loss"] for row in rows], [row["grad_norm"] for row in rows], weights)


def _differences(ours: Figures, whole: Figures) -> tuple[float, str]:
    """The largest relative difference, and what it is in. A figure that is no number differs infinitely."""
    found = [(0.0, "nothing")]
    for name, one, other in (("loss", ours.losses, whole.losses), ("gradient norm", ours.norms, whole.norms)):
        found += [
            (_apart(abs(a - b), abs(b)), f"the {name} of step {step}")
            for step, (a, b) in enumerate(zip(one, other, strict=True), start=1)
        ]
    for name, weight in whole.weights.items():
        apart = float((ours.weights[name] - weight).norm())
        found.append((_apart(apart, float(weight.norm()) + SMALL), f"the weights of {name}"))
    return max(found)


def _apart(difference: float, size: float) -> float:
    ratio = difference / size if size else difference
    return ratio if ratio == ratio else float("inf")


class _Kept(Tracker):
    """Metrics by step, on every process."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.setdefault(step, {}).update(metrics)

    def rewind(self, step: int) -> None:
        """There is nothing before."""

    def finish(self, summary: dict[str, float]) -> None:
        """Nobody asks."""
