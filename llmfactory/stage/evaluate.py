"""How well a model predicts held-out text: loss, perplexity, bits per byte.

Everything is computed from one sum, the negative log-likelihood of every target token of every held-out row, and two
counts. Bits per byte divides by the UTF-8 bytes of the text itself, so it compares models with different tokenizers, and
with compressors: bits = sum nll / (ln 2 * bytes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmfactory.config.spec import Job
from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.data.loader import held_out_batches
from llmfactory.data.marks import prepared_marks
from llmfactory.data.prepare import prepare
from llmfactory.data.prepared import Prepared
from llmfactory.kernel.linear_cross_entropy import linear_cross_entropy
from llmfactory.model.count import parameters
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.parallel.spec import Mesh
from llmfactory.stage.initial import checkpoint_of, corpus_for, load_model
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Evaluate

if TYPE_CHECKING:
    from llmfactory.data.pack.rows import Rows
    from llmfactory.precision.plugin import MeshPrecision


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of all held-out rows, over all processes."""

    nll: float
    """Sum over target tokens of -log p(token), in nats."""
    targets: int
    """Number of target tokens."""

    @property
    def loss(self) -> float:
        return self.nll / self.targets

    def figures(self, text_bytes: int) -> dict[str, float]:
        """`text_bytes`: UTF-8 bytes of the text that the targets stand for."""
        return {
            "held_out_loss": self.loss,
            "perplexity": math.exp(min(self.loss, 700.0)),
            "bits_per_byte": self.nll / math.log(2) / text_bytes,
        }


@torch.no_grad()
def likelihood(model: Skeleton, rows: Rows, precision: MeshPrecision, world: World, batch_size: int) -> Likelihood:
    """Every held-out row once, dealt out over the processes; the sums do not depend on how."""
    was_training = model.training
    model.eval()
    nll, targets = 0.0, 0
    for batch in held_out_batches(rows, batch_size=batch_size, rank=world.data_rank, world=world.data_size, limit=None):
        targets += int((batch["labels"] != IGNORE).sum())
        here = {name: field.to(world.device) for name, field in batch.items()}
        with precision.forward_context():
            hidden = model(here["tokens"], model.context(here, rows.isolated))
            head = model.head
            features, labels = head.features(hidden), here["labels"]
            nll += linear_cross_entropy(features, head.weight, labels, bias_V=head.bias, softcap=head.softcap).item()
    model.train(was_training)
    total_nll, total_targets = world.sum_numbers([nll, float(targets)])
    return Likelihood(total_nll, int(total_targets))


def compressor_figures(data: Prepared) -> dict[str, float]:
    """Bits per byte of general compressors that have seen the training text, on the same held-out text."""
    return {f"{name}_bits_per_byte": mark for name, mark in prepared_marks(data).items()}


class EvaluateJob(StageJob):
    """The model of `init` on the held-out documents of `data`; every process takes a part of the rows."""

    def __init__(self, spec: Evaluate) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        checkpoint = checkpoint_of(job, "evaluating")
        assert isinstance(job.parallel, Mesh)
        with open_world(job.parallel, device_type(job.trainer.device)) as world:
            data = prepare(corpus_for(job.data, checkpoint), job.model.vocab_size)
            precision = job.precision.build(world.device.type)
            model = load_model(job, checkpoint, precision, world)
            rows = job.data.pack.build(data.held_out, job.data.seq_len)
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
            found = likelihood(model, rows, precision, world, self.spec.batch_size * world.data_size)
            figures = {**found.figures(data.held_out_bytes), "parameters": parameters(model)}
            marks = compressor_figures(data) if self.spec.compressors and world.rank == 0 else {}
        return {"checkpoint": str(checkpoint), **figures, **marks}
