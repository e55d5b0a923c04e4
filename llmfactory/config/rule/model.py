"""Rules about what goes into a model."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.config.tree import override_key
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem, walk
from llmfactory.data.tokenizer.spec import ByteBpe, Bytes, WordLevel
from llmfactory.model.spec import TowerSpec
from llmfactory.stage.spec import Embed, Export, Generate, TrainingSpec

BYTES = 257
"""Ids that bytes take: one each, and the end of a document."""


def rows_fit_the_model(job: Job) -> Iterator[Problem]:
    longest = job.model.max_positions
    if isinstance(job.stage, (Generate, Export, Embed)):  # which read no data
        return
    if job.data.seq_len > longest:
        reason = f"rows are longer than the model's max_positions={longest}"
        yield Problem("data.seq_len", job.data.seq_len, reason, f"data.seq_len={longest}")


def ids_fit_the_model(job: Job) -> Iterator[Problem]:
    tokenizer, size = job.data.tokenizer, job.model.vocab_size
    objective = job.stage.objective if isinstance(job.stage, TrainingSpec) else None
    special = 0 if objective is None else len(objective.specials())
    besides = f", {special} of them for special tokens of {stem(type(objective))}" if special else ""
    if isinstance(tokenizer, (ByteBpe, WordLevel)) and tokenizer.vocab_size is not None and tokenizer.vocab_size + special > size:
        reason = f"the model has an embedding for {size} ids only (model.vocab_size){besides}"
        yield Problem("data.tokenizer.vocab_size", tokenizer.vocab_size, reason, "data.tokenizer.vocab_size=null")
    if isinstance(tokenizer, (ByteBpe, Bytes)) and size < BYTES + special:
        needed = BYTES + special
        reason = f"{needed} ids are needed at least{besides}; a byte-level tokenizer has every byte, and the end of a document"
        yield Problem("model.vocab_size", size, reason, f"model.vocab_size={needed}")


def cross_attention_stands_at_cross(job: Job) -> Iterator[Problem]:
    """Attention to an encoder's output reads no tokens of its own, and the other way round."""
    for path, tower in walk(job.model, "model"):
        if not isinstance(tower, TowerSpec):
            continue
        places = {"attention": tower.attention} | ({} if tower.cross is None else {"cross": tower.cross})
        for name, part in places.items():
            if part.of_memory is not (name == "cross"):
                reason = f"attends to {'an encoder' if part.of_memory else 'its own text'}, which is not what is wanted here"
                key = override_key("model/attention", f"{path}.{name}")
                other = "cross" if name == "cross" else "gqa"
                yield Problem(f"{path}.{name}", stem(type(part)), reason, f"{key}={other}")
