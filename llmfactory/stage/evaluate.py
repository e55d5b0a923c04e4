"""How well a model does on held-out text: the loss of its objective, and of a language model perplexity and bits per byte.

Everything is computed from sums over every held-out row and counts that depend on the rows alone; hidden tokens are the same in
every run. Bits per byte divides by the UTF-8 bytes of the text itself, so it compares models with different tokenizers, and
with compressors: bits = sum nll / (ln 2 * bytes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml  # type: ignore[import-untyped]

from llmfactory.config.initial import CONFIG
from llmfactory.config.plain import spec_from_plain
from llmfactory.config.register import packages
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.data.loader import held_out_batches
from llmfactory.data.marks import prepared_marks
from llmfactory.data.prepare import prepare
from llmfactory.data.prepared import Prepared
from llmfactory.model.count import parameters
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import ModelSpec
from llmfactory.objective.objective import Objective
from llmfactory.objective.spec import ObjectiveSpec, answers_of, natural
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.parallel.spec import Mesh
from llmfactory.stage.initial import checkpoint_of, corpus_for, load_model
from llmfactory.stage.job import StageJob
from llmfactory.stage.pretrain import Root
from llmfactory.stage.rows import task_rows
from llmfactory.stage.spec import Evaluate

if TYPE_CHECKING:
    from llmfactory.data.pack.rows import Rows
    from llmfactory.precision.plugin import MeshPrecision


@dataclass(frozen=True, slots=True)
class Measure:
    """Of all held-out rows, over all processes."""

    sums: dict[str, float]
    """Of each term of the loss."""
    counts: dict[str, float]
    """What each is divided by."""
    objective: Objective

    @property
    def loss(self) -> float:
        return sum(total / self.counts[name] for name, total in self.sums.items())

    def figures(self, text_bytes: int) -> dict[str, Any]:
        """`text_bytes`: UTF-8 bytes of the held-out text.

        Perplexity and bits per byte are of text only where the loss is the likelihood of all of it; a loss of hidden or
        missing tokens is no such thing, and is given with its own unit.
        """
        found: dict[str, Any] = {"held_out_loss": self.loss, "loss_unit": self.objective.unit}
        if self.objective.likelihood:
            found["perplexity"] = math.exp(min(self.loss, 700.0))
            found["bits_per_byte"] = self.sums["loss"] / math.log(2) / text_bytes
        if len(self.sums) > 1:
            found |= {f"held_out_{name}": total / self.counts[name] for name, total in self.sums.items()}
        return found


@torch.no_grad()
def measure(
    model: Skeleton, objective: Objective, rows: Rows, precision: MeshPrecision, world: World, batch_size: int
) -> Measure:
    """Every held-out row once, dealt out over the processes; the sums do not depend on how."""
    was_training, plain = model.training, objective.plain()
    root = Root(model, plain, rows.isolated).eval()
    sums, counts = dict.fromkeys(plain.terms, 0.0), dict.fromkeys(plain.terms, 0.0)
    for batch in held_out_batches(rows, batch_size=batch_size, rank=world.data_rank, world=world.data_size, limit=None):
        for name, count in plain.denominators(batch).items():
            counts[name] += count.item()
        with precision.forward_context():
            found = root({name: field.to(world.device) for name, field in batch.items()})
        for name, total in found.items():
            sums[name] += total.item()
    model.train(was_training)
    totals = world.sum_numbers([*sums.values(), *counts.values()])
    return Measure(dict(zip(sums, totals, strict=False)), dict(zip(counts, totals[len(sums) :], strict=True)), plain)


def compressor_figures(data: Prepared) -> dict[str, float]:
    """Bits per byte of general compressors that have seen the training text, on the same held-out text."""
    return {f"{name}_bits_per_byte": mark for name, mark in prepared_marks(data).items()}


def objective_of(checkpoint: Path, model: ModelSpec) -> ObjectiveSpec:
    """What a checkpoint of ours was trained on; of a published model, what its kind of model is trained on."""
    path = checkpoint / CONFIG
    if path.is_file():
        try:
            saved = yaml.safe_load(path.read_text(encoding="utf-8"))
            names = packages(plugins=saved.get("plugins") or ())
            spec = spec_from_plain(saved["stage"]["objective"], ObjectiveSpec, names, "stage.objective")
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise UserError(f"{path} does not say what the model was trained on: {error}") from error
        assert isinstance(spec, ObjectiveSpec)
        return spec
    found = natural(model.graph, answers_of(model))
    if found is None:
        raise UserError(f"no objective measures a model of kind {model.graph!r} whose head says {answers_of(model)!r}")
    return found()


class EvaluateJob(StageJob):
    """The model of `init` on the held-out documents of `data`; every process takes a part of the rows.

    It is measured by the objective that it was trained on.
    """

    def __init__(self, spec: Evaluate) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        checkpoint = checkpoint_of(job, "evaluating")
        assert isinstance(job.parallel, Mesh)
        with open_world(job.parallel, device_type(job.trainer.device)) as world:
            spec = objective_of(checkpoint, job.model)
            objective = spec.build()
            data = prepare(corpus_for(job.data, checkpoint), job.model.vocab_size, specials=spec.specials())
            precision = job.precision.build(world.device.type)
            model = load_model(job, checkpoint, precision, world, objective)
            rows = task_rows(job, objective, data, data.held_out)
            if not len(rows):
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
            found = measure(model, objective, rows, precision, world, self.spec.batch_size * world.data_size)
            figures = {**found.figures(data.held_out_bytes), "parameters": parameters(model)}
            marked = self.spec.compressors and objective.likelihood and world.rank == 0
            marks = compressor_figures(data) if marked else {}
        return {"checkpoint": str(checkpoint), **figures, **marks}
