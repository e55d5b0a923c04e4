"""Which rows of a batch have the largest losses, and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmfactory.data.loader import share
from llmfactory.guard.detector import NORMAL
from llmfactory.guard.remedy import Finding
from llmfactory.guard.spec import WatchSpec
from llmfactory.parallel.spec import TensorForm
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.run.supply import RowSupply
from llmfactory.stage.rows import Data
from llmfactory.stage.training import TrainingStage

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

MOST = 32
"""Rows that are named."""
SHOWN_TOKENS, SHOWN_LETTERS = 40, 60
"""Of the beginning of a row."""
SAME = 0.25
"""Share by which the mean of a step's rows may differ from its loss, which weighs them by their tokens."""
UNWATCHED_Z = 8.0
"""Of rows, where losses of steps are not compared."""


@torch.no_grad()
def row_losses(stage: TrainingStage, batch: Batch, size: int, strategy: MeshStrategy) -> list[float]:
    """The plain measure of each row of a step of `size` rows by itself, by the model as it is; called by every process with its
    share. None at all, where rows cannot stand alone: the measure compares them, or a grid of processes shares them out."""
    world, plain = strategy.world, stage.root.measure
    if plain.surveys or strategy.layout.tensor_form is not TensorForm.one_d:
        return []
    terms = list(plain.terms)
    low, high = share(0, size, world.data_rank, world.data_size)
    sums, counts = np.zeros((size, len(terms))), np.zeros((size, len(terms)))
    stage.root.eval()
    for number in range(-(-size // world.data_size)):  # as many everywhere, since collective operations must meet
        place = min(number, high - low - 1)
        row = {name: field[place : place + 1] for name, field in batch.items()}
        found = strategy.evaluate({name: field.to(world.device) for name, field in row.items()})
        if number == place:
            sums[low + place] = [float(found.get(name, 0.0)) for name in terms]
            if world.counts:
                counted = stage.count(row)
                counts[low + place] = [counted.get(name, 0.0) for name in terms]
    stage.root.train()
    totals = np.array(world.sum_numbers([*sums.ravel().tolist(), *counts.ravel().tolist()])).reshape(2, size, len(terms))
    means = np.divide(totals[0], totals[1], out=np.zeros_like(totals[0]), where=totals[1] > 0)
    losses: list[float] = means.sum(1).tolist()
    return losses


def usual_row(finding: Finding, losses: Sequence[float]) -> tuple[float, float] | None:
    """(center, unit) of a row's loss, by the window's steps: the mean of n independent rows moves sqrt(n) times less than one. None,
    where that cannot be told: the rows' mean is far from the step's loss (terms of the objective, or another model by now)."""
    z, mean = finding.loss_z, float(np.mean(losses))
    if not (finding.finite and math.isfinite(z) and z > 0 and abs(mean - finding.loss) <= SAME * abs(finding.loss)):
        return None
    return finding.loss_center, math.sqrt(len(losses)) * (finding.loss - finding.loss_center) / z


def outliers(losses: Sequence[float], spec: WatchSpec, usual: tuple[float, float] | None = None) -> list[int]:
    """Places of the rows that stand out from their batch, or from what is `usual`, where most of a batch is wrong; the worst first, at
    least one."""
    known = np.array([loss for loss in losses if math.isfinite(loss)] or [0.0])
    center = float(np.median(known))
    unit = max(NORMAL * float(np.median(np.abs(known - center))), spec.floor * abs(center))
    z = UNWATCHED_Z if spec.loss_z is None else spec.loss_z
    limit = center + z * unit
    if usual is not None:
        limit = min(limit, usual[0] + z * min(unit, usual[1]))
    worst = sorted(
        range(len(losses)), key=lambda place: losses[place] if math.isfinite(losses[place]) else math.inf, reverse=True
    )
    return [place for place in worst if not losses[place] <= limit][:MOST] or worst[:1]


def described(places: Sequence[int], losses: Sequence[float], step: int, supply: RowSupply, data: Data) -> list[dict[str, Any]]:
    """Rows of a step, from 0, as plain data: their numbers, losses, source, documents of it, and how they begin."""
    samples, rows = supply.steps.step(step)
    names, last = list(supply.rows.sources), np.cumsum([len(part) for part in supply.rows.sources.values()])
    found = []
    for place in places:
        row = int(rows[place])
        tokens = supply.rows.read(np.array([row]))["tokens"][0, :SHOWN_TOKENS].tolist()
        one = {"row": row, "sample": int(samples[place]), "loss": losses[place], "documents": supply.rows.documents(row)}
        if names:
            one["source"] = names[int(last.searchsorted(row, side="right"))]
        found.append(one | {"begins": data.tokenizer.decode(tokens)[:SHOWN_LETTERS]})
    return found
