"""Laptop size: the same model, made small. What makes an architecture itself stays: the ratios of heads to key/value heads
and of hidden width to model width, tied matrices, biases, the kinds of parts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from llmfactory.config.spec import Job
from llmfactory.core.spec import Spec, walk
from llmfactory.data.spec import DataSpec
from llmfactory.data.tokenizer.spec import ByteBpe, HfFile, WordLevel
from llmfactory.model.attention.spec import AttentionSpec
from llmfactory.model.mixer.spec import LinearAttention
from llmfactory.model.spec import ModelSpec
from llmfactory.run.spec import Trainer

POSITIONS = 64
ROWS = 32
VOCAB = 384
"""More than the 257 ids that bytes take."""
HEADLESS = 4
"""As many heads' width for a model without heads."""
WIDEST = 128
"""Width of the model, unless its ratio of heads needs more."""


def toy(job: Job) -> Job:
    """The job with a small model, and rows and a vocabulary that fit it. Doing it again changes nothing."""
    fixed_vocab = isinstance(job.data.tokenizer, HfFile)  # its ids are what they are
    model = small_model(job.model, job.model.vocab_size if fixed_vocab else VOCAB)
    return dataclasses.replace(job, model=model, data=_fitting(job.data, model), trainer=_fewer(job.trainer))


def small_model(model: ModelSpec, vocab: int = VOCAB) -> ModelSpec:
    """The skeleton with few layers (a whole `pattern`), at most `POSITIONS` positions and `vocab` ids."""
    heads = [part.small(1.0)["n_heads"] for _, part in walk(model) if isinstance(part, (AttentionSpec, LinearAttention))]
    together = math.lcm(*heads) if heads else HEADLESS
    width = next((width for width in (8, 4) if together * width <= WIDEST), 2)
    dim = together * width
    limits = {"vocab_size": min(model.vocab_size, vocab), "max_positions": min(model.max_positions, POSITIONS)}
    return dataclasses.replace(model, **{"dim": dim, **limits, **_changes(model, dim / model.dim)})


def _changes(spec: Spec, scale: float) -> dict[str, Any]:
    """What makes a spec small, the parts that it holds included; `scale` is the factor of the model's width."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Spec):
            changes[field.name] = _small(value, scale)
        elif isinstance(value, dict):
            changes[field.name] = {key: _small(item, scale) if isinstance(item, Spec) else item for key, item in value.items()}
    return changes | spec.small(scale)


def _small(part: Spec, scale: float) -> Spec:
    return dataclasses.replace(part, **_changes(part, scale))


def _fewer(trainer: Trainer) -> Trainer:
    """At most `ROWS` rows a step; a ramp keeps its ratios."""
    rows = min(trainer.batch_size, ROWS)
    if rows == trainer.batch_size:
        return trainer
    ramp = trainer.batch_ramp.smaller(rows, rows / trainer.batch_size)
    at_once = None if trainer.micro_batch_size is None else min(trainer.micro_batch_size, rows)
    return dataclasses.replace(trainer, batch_size=rows, batch_ramp=ramp, micro_batch_size=at_once)


def _fitting(data: DataSpec, model: ModelSpec) -> DataSpec:
    tokenizer = data.tokenizer
    if isinstance(tokenizer, (ByteBpe, WordLevel)) and tokenizer.vocab_size is not None:
        tokenizer = dataclasses.replace(tokenizer, vocab_size=min(tokenizer.vocab_size, model.vocab_size))
    return dataclasses.replace(data, seq_len=min(data.seq_len, model.max_positions), tokenizer=tokenizer)
