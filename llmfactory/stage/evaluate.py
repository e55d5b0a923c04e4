"""How well a model does on held-out text: the loss of its objective, and of a language model perplexity and bits per byte.

Everything is computed from sums over every held-out row and counts that depend on the rows alone; hidden tokens are the same in
every run. Bits per byte divides by the UTF-8 bytes of the text itself, so it compares models with different tokenizers, and
with compressors: bits = sum nll / (ln 2 * bytes).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmfactory.checkpoint.names.published import is_published, open_published
from llmfactory.config.register import class_of
from llmfactory.config.saved import saved_spec
from llmfactory.config.spec import Job
from llmfactory.core.batch import SURVEY
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.core.spec import stem
from llmfactory.data.examples import Examples
from llmfactory.data.form.spec import SIDED, WORDS, SidedSpec
from llmfactory.data.loader import held_out_by_source
from llmfactory.data.marks import prepared_marks
from llmfactory.data.prepared import Prepared
from llmfactory.data.spec import DocumentsSpec, Labelled
from llmfactory.data.task.spec import task_of
from llmfactory.model.count import parameters
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import ModelSpec
from llmfactory.objective.objective import Objective
from llmfactory.objective.preference_spec import PreferenceSpec, Reference
from llmfactory.objective.spec import ObjectiveSpec, answers_of, natural
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.parallel.survey import surveyed
from llmfactory.stage.initial import checkpoint_of, load_model
from llmfactory.stage.job import StageJob
from llmfactory.stage.referencing import compared, with_reference
from llmfactory.stage.rows import Data, read_data, task_rows
from llmfactory.stage.score import score
from llmfactory.stage.spec import Evaluate
from llmfactory.stage.training import Root

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.data.pack.rows import Rows
    from llmfactory.precision.plugin import MeshPrecision


@dataclass(frozen=True, slots=True)
class Measure:
    """Of all held-out rows, over all processes."""

    sums: dict[str, float]
    """Of each term of the loss, and of what is watched beside it."""
    counts: dict[str, float]
    """What each is divided by."""
    objective: Objective
    sources: Mapping[str, Measure] = field(default_factory=dict)
    """Of each source of a mixture that has held-out rows."""

    @classmethod
    def of(cls, parts: Mapping[str, Measure]) -> Measure | None:
        """What several sources are together; None: no target is among them."""
        parts = {name: part for name, part in parts.items() if all(part.counts[term] for term in part.objective.terms)}
        if not parts:
            return None
        names, objective = list(next(iter(parts.values())).sums), next(iter(parts.values())).objective
        sums = {name: sum(part.sums[name] for part in parts.values()) for name in names}
        counts = {name: sum(part.counts[name] for part in parts.values()) for name in names}
        return cls(sums, counts, objective, {name: part for name, part in parts.items() if name})

    def losses(self) -> dict[str, float]:
        """The loss, and that of each source."""
        return {"held_out_loss": self.loss, **{f"held_out_loss/{name}": part.loss for name, part in self.sources.items()}}

    @property
    def loss(self) -> float:
        return sum(self.sums[name] / self.counts[name] for name in self.objective.terms)

    def figures(self, text_bytes: int | None) -> dict[str, Any]:
        """`text_bytes`: UTF-8 bytes of the held-out text; None: its tokens do not stand for all of it.

        Perplexity and bits per byte are of text only where the loss is the likelihood of all of it; a loss of hidden or
        missing tokens is no such thing, and is given with its own unit.
        """
        found: dict[str, Any] = {**self.losses(), "loss_unit": self.objective.unit}
        if self.objective.likelihood:
            found["perplexity"] = math.exp(min(self.loss, 700.0))
            if text_bytes is not None:
                found["bits_per_byte"] = self.sums["loss"] / math.log(2) / text_bytes
        return found | self.watched()

    def watched(self) -> dict[str, float]:
        """The terms of the loss where there are several, and what is watched beside them."""
        if len(self.sums) < 2:
            return {}
        names = [name for name in self.sums if name != "loss" and self.counts[name]]
        return {f"held_out_{name}": self.sums[name] / self.counts[name] for name in names}


@torch.no_grad()
def measure(
    model: Skeleton, objective: Objective, rows: Rows, precision: MeshPrecision, world: World, batch_size: int
) -> Measure | None:
    """Every held-out row once, dealt out over the processes; the sums do not depend on how. None: no row has a target."""
    was_training, plain = model.training, objective.plain()
    root = Root(model, plain, rows.isolated).eval()
    parts: dict[str, Measure] = {}
    for source, batches in held_out_by_source(rows, batch_size=batch_size, rank=world.rank, world=world.size).items():
        names = (*plain.terms, *plain.watched)
        if plain.surveys:  # it must have seen all of them before it can say anything
            batches = _surveyed(root, batches, precision, world)
        sums, counts = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for batch in batches:
            for name, count in plain.denominators(batch).items():
                counts[name] += count.item()
            with precision.forward_context():
                found = root({name: values.to(world.device) for name, values in batch.items()})
            for name, total in found.items():
                sums[name] += total.item()
        totals = world.sum_numbers([*sums.values(), *counts.values()])
        parts[source] = Measure(
            dict(zip(names, totals, strict=False)), dict(zip(names, totals[len(names) :], strict=True)), plain
        )
    model.train(was_training)
    return Measure.of(parts)


def _surveyed(root: Root, batches: Iterable[Batch], precision: MeshPrecision, world: World) -> Iterator[Batch]:
    """The batches, each with the sums over all of them, on all processes."""

    def survey(batch: Batch) -> Tensor:
        with precision.forward_context():
            found: Tensor = root(batch, survey=True)[SURVEY]
        return found

    here = [({name: values.to(world.device) for name, values in batch.items()}, 1.0) for batch in batches]
    return (batch for batch, _ in surveyed(here, survey, world))


def held_out_figures(
    job: Job,
    model: Skeleton,
    objective: Objective,
    data: Data,
    precision: MeshPrecision,
    world: World,
    batch_size: int,
    rows: Rows | None = None,
) -> dict[str, Any]:
    """Of all that is held out, the figures of labelled examples' task among them; nothing is held out: none.

    `batch_size`: rows of a process that go through the model at once. `rows`: where they have been made already.
    """
    rows = task_rows(job, objective, data, "held_out") if rows is None else rows
    if not len(rows):
        return {}
    measured = measure(model, objective, rows, precision, world, batch_size * world.size)
    if measured is None:
        return {}
    figures = measured.figures(text_bytes(data))
    if isinstance(data, Examples):
        figures |= score(model, data, job.data.seq_len, precision, world, batch_size)
    return figures


def text_bytes(data: Data) -> int | None:
    """UTF-8 bytes of the held-out text; None: its tokens do not stand for all of it, or there are examples instead of text."""
    if isinstance(data, Prepared) and data.tokenizer.lossless and not data.records:
        return data.held_out_bytes
    return None


def compressor_figures(data: Prepared) -> dict[str, float]:
    """Bits per byte of general compressors that have seen the training text, on the same held-out text."""
    return {f"{name}_bits_per_byte": mark for name, mark in prepared_marks(data).items()}


def objective_of(checkpoint: Path, model: ModelSpec) -> ObjectiveSpec:
    """What a checkpoint of ours was trained on; of a published model, what its kind of model is trained on."""
    saved = saved_spec(checkpoint, ObjectiveSpec, "stage", "objective")
    if saved is not None:
        return saved
    if is_published(checkpoint) and (name := open_published(checkpoint).family.objective) is not None:
        known = class_of("stage/objective", name)
        assert known is not None
        assert issubclass(known, ObjectiveSpec)
        return known()
    found = natural(model.graph, answers_of(model))
    if found is None:
        raise UserError(f"no objective measures a model of kind {model.graph!r} whose head says {answers_of(model)!r}")
    return found()


def insist_measurable(job: Job, spec: ObjectiveSpec, checkpoint: Path) -> None:
    """That the data are what this objective learns from."""
    data = job.data
    kind = data.task.kind if isinstance(data, Labelled) else None
    form = data.form if isinstance(data, DocumentsSpec) else None
    judged = form.kind if isinstance(form, SidedSpec) else None
    if kind == (spec.answers if spec.labelled else None) and (judged in spec.kinds or not (judged or spec.kinds)):
        return
    if spec.labelled:
        wanted = f"examples (data=examples data/task={task_of(spec.answers)})"
    elif spec.kinds:
        fitting = [cls for cls in SIDED if cls.kind in spec.kinds]
        wanted = " or ".join(f"answers that are {WORDS[cls.kind]} (data={stem(cls)})" for cls in fitting)
    else:
        wanted = "running text or conversations"
    raise UserError(f"{checkpoint} was trained on {stem(type(spec))}, which is measured on {wanted}: choose other data=")


class EvaluateJob(StageJob):
    """The model of `init` on the held-out documents of `data`; every process takes a part of the rows.

    It is measured by the objective that it was trained on.
    """

    def __init__(self, spec: Evaluate) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        checkpoint = checkpoint_of(job, "evaluating")
        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            spec = objective_of(checkpoint, job.model)
            objective = spec.build()
            insist_measurable(job, spec, checkpoint)
            data = read_data(job, checkpoint, spec.specials())
            precision, rows = job.precision.build(world.device.type), None
            if isinstance(spec, PreferenceSpec) and compared(checkpoint, spec):
                objective = spec.build(Reference.precomputed)
                rows = task_rows(job, objective, data, "held_out")
                rows = with_reference(job, checkpoint, objective, rows, precision, world, self.spec.batch_size)
            model = load_model(job, checkpoint, precision, world, objective)
            figures = held_out_figures(job, model, objective, data, precision, world, self.spec.batch_size, rows)
            if not figures:
                raise ConfigError(
                    [
                        Problem(
                            "data.held_out",
                            job.data.held_out,
                            "no document is held out, so there is none to evaluate on",
                            "data.held_out=0.05",
                        )
                    ]
                )
            figures["parameters"] = parameters(model)
            marked = self.spec.compressors and objective.likelihood and isinstance(data, Prepared) and world.rank == 0
            marks = compressor_figures(data) if marked else {}  # type: ignore[arg-type]
        return {"checkpoint": str(checkpoint), **figures, **marks}
