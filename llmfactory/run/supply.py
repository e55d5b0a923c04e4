"""Where a training run has its batches from, and what it is measured on meanwhile: rows of data, or what the model itself writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmfactory.config.spec import Job
from llmfactory.data.form.referenced import ReferencedRows
from llmfactory.data.loader import StepLoader, held_out_by_source
from llmfactory.data.order import Stretch
from llmfactory.objective.answers import AnswersObjective
from llmfactory.objective.objective import Objective
from llmfactory.objective.preference_spec import Reference
from llmfactory.parallel.mesh import World
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.run.evaluating import held_out_measure
from llmfactory.run.progress import Progress
from llmfactory.stage.evaluate import Measure
from llmfactory.stage.rows import Data, task_rows
from llmfactory.stage.spec import RlSpec
from llmfactory.stage.training import TrainingStage

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.rows import Rows

SHOWN = 64
"""Samples of a step that a message names."""


class Supply(ABC):
    loader: Iterable[Batch]
    """This process's share of each step, from the first that the run has to make."""
    isolated: bool
    """Rows hold several documents, or padding that attention would see."""

    def begin(self, stage: TrainingStage, strategy: MeshStrategy, formats: MeshPrecision) -> None:
        """Hear of what is trained, before the first batch is asked for."""
        self.stage, self.strategy, self.formats = stage, strategy, formats

    @abstractmethod
    def samples(self, step: int) -> str:
        """What a step learns from, for a message."""

    @abstractmethod
    def drawn(self, step: int) -> dict[str, float]:
        """Metrics of what has been read by now."""

    @abstractmethod
    def measure(self, limit: int | None) -> Measure | None:
        """The model as it stands on so many of the held-out rows (None: on all); None: there are none. Called by every process."""

    def keep(self) -> Callable[[Path], None]:
        """What writes the state of this moment into a checkpoint, if steps alone do not tell it. Called by every process."""
        return lambda path: None

    def figures(self) -> dict[str, Any]:
        """What the end of the run has to say besides."""
        return {}


class RowSupply(Supply):
    """Rows of data."""

    rows: Rows
    held_out: Rows

    def __init__(
        self, job: Job, objective: Objective, data: Data, world: World, start_step: int, left_out: Sequence[Stretch] = ()
    ) -> None:
        """`left_out`: stretches of the order of samples that are not read."""
        self.job, self.world = job, world
        self.rows, self.held_out = (task_rows(job, objective, data, part) for part in ("train", "held_out"))
        if isinstance(objective, AnswersObjective) and objective.reference is Reference.precomputed:
            self.rows, self.held_out = ReferencedRows(self.rows), ReferencedRows(self.held_out)
        self.isolated = self.rows.isolated
        self.loader = self.steps = StepLoader(
            self.rows,
            batch_size=job.trainer.batch_size,
            seed=job.seed,
            rank=world.data_rank,
            world=world.data_size,
            start_step=start_step,
            left_out=left_out,
            sizes=job.trainer.sizes(job.data.seq_len),
        )

    def samples(self, step: int) -> str:
        numbers = [str(number) for number in self.steps.step(step)[1]]
        return "rows " + ", ".join(numbers[:SHOWN]) + (" ..." if len(numbers) > SHOWN else "")

    def drawn(self, step: int) -> dict[str, float]:
        sizes = self.steps.sizes
        grown = {"batch_rows": float(sizes.rows(max(0, step - 1)))} if sizes.varies else {}
        return self.steps.drawn(step) | grown

    def measure(self, limit: int | None) -> Measure | None:
        spec, world = self.job.trainer, self.world
        size = min(spec.batch_size, (spec.micro_batch_size or spec.batch_size) * world.data_size)
        batches = held_out_by_source(self.held_out, batch_size=size, rank=world.data_rank, world=world.data_size, limit=limit)
        return held_out_measure(self.stage, batches, self.strategy)


def open_supply(
    job: Job,
    objective: Objective,
    data: Data,
    world: World,
    progress: Progress,
    resume: Path | None,
    last_step: int,
    left_out: Sequence[Stretch] = (),
) -> Supply:
    """`resume`: the checkpoint that the run goes on from; `last_step`: at which it ends; `left_out`: see `RowSupply`."""
    if isinstance(job.stage, RlSpec):
        from llmfactory.run.answers import AnswerSupply

        return AnswerSupply(job, data, world, progress, resume, last_step)
    return RowSupply(job, objective, data, world, progress.step, left_out)
