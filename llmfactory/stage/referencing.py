"""Measuring a model that was trained against a reference: what the model that its run began with says of the held-out answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmfactory.checkpoint import io
from llmfactory.checkpoint.names.published import is_published
from llmfactory.config.saved import saved_config, saved_spec
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.data.form.referenced import ReferencedRows
from llmfactory.data.loader import share
from llmfactory.objective.answers import AnswersObjective, Asked
from llmfactory.objective.preference_spec import Compares, PreferenceSpec, Reference
from llmfactory.parallel.mesh import World
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.stage.base import BASE, find_base
from llmfactory.stage.initial import load_model
from llmfactory.stage.training import Root
from llmfactory.stage.tuning_spec import Preference

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.rows import Rows


def compared(checkpoint: Path, spec: PreferenceSpec) -> bool:
    """Whether the run of a checkpoint compared with a reference."""
    stage = saved_spec(checkpoint, Preference, "stage")
    if stage is None or stage.reference is None:
        return spec.compares in (Compares.always, Compares.usually)
    return stage.reference is not Reference.none


def began_with(checkpoint: Path) -> Path:
    """The checkpoint or published model that a run started from. Raises UserError: it is gone, or there was none."""
    record = io.read_state(checkpoint).get(BASE)
    if record is not None:
        found = find_base(checkpoint, record)
    else:
        init = saved_config(checkpoint)["init"]
        place = None if init is None else Path(init).expanduser()
        found = place if place is None or is_published(place) else io.find(place)
    if found is None:
        raise UserError(
            f"{checkpoint} was trained against the model that its run began with, which had random weights that nobody has kept: "
            f"the figures that compare with it are those in the run's own report"
        )
    return found


def with_reference(
    job: Job,
    checkpoint: Path,
    objective: AnswersObjective,
    rows: Rows,
    precision: MeshPrecision,
    world: World,
    batch_size: int,
) -> ReferencedRows:
    """The rows, and what the model that the run of a checkpoint began with says of their answers. Called by every process."""
    model = load_model(replace(job, init_trained=False), began_with(checkpoint), precision, world)
    known = ReferencedRows(rows)
    root = Root(model, Asked(1), rows.isolated).eval()

    def ask(batch: Batch, answers: int) -> Tensor:
        root.measure = Asked(answers)
        with torch.no_grad(), precision.forward_context():
            found: Tensor = root({name: field.to(world.device) for name, field in batch.items()})["answers"]
        return found.double()

    known.logps_RK = asked(rows, objective, ask, world, (world.rank, world.size), batch_size)
    return known


def asked(
    rows: Rows,
    objective: AnswersObjective,
    ask: Callable[[Batch, int], Tensor],
    world: World,
    place: tuple[int, int],
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """[R, K]: what is said of the answers of each row. Called by every process, which takes its share of the rows.

    `ask`: of a batch with so many answers a row, this process's part of the log-probabilities [B, K]. `place`: which share of the rows
    is this process's, and of how many.
    """
    found, step = [], batch_size * place[1]
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        low, high = share(start, stop, *place)
        batch = rows.read(np.arange(low, high) if low < high else np.array([start]))  # whoever has none left must go along
        said = torch.cat([ask(some, answers) for some, answers in objective.asked(batch)], 1)
        whole = said.new_zeros(stop - start, said.shape[1])
        if low < high:
            whole[low - start : high - start] = said
        found.append(world.sum_tensor(whole).cpu().numpy())
        progress(stop)
    return np.concatenate(found) if found else np.zeros((0, 1))
