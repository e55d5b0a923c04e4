"""The data of a job, and the rows that it trains or measures on: those of the data, made into the objective's task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmfactory.checkpoint.names.published import is_published
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.core.special import Special
from llmfactory.data.corruption.corruption import CorruptedRows
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.examples import Examples, read_examples, saved_labels
from llmfactory.data.form.shared_prompt import SharedPromptRows
from llmfactory.data.form.spec import SidedSpec
from llmfactory.data.mix.mixed_rows import MixedRows
from llmfactory.data.prepare import prepare
from llmfactory.data.prepared import Prepared
from llmfactory.data.spec import DocumentsSpec, Labelled, Mixture
from llmfactory.data.tokenizer.tokenizer import FOLDER
from llmfactory.model.head.spec import Classifier, TokenClassifier
from llmfactory.stage.initial import data_for
from llmfactory.stage.models import TrainedModels
from llmfactory.stage.tuning_spec import Preference, Reward

if TYPE_CHECKING:
    from llmfactory.data.pack.rows import Rows
    from llmfactory.objective.objective import Objective

Data = Prepared | Examples


def read_data(
    job: Job,
    checkpoint: Path | None,
    specials: Sequence[Special],
    progress: Callable[[str, int, int], None] | None = None,
) -> Data:
    """`checkpoint`: where the model's weights come from, whose tokenizer and classes are used; None: the model is new."""
    spec = job.data if checkpoint is None else data_for(job.data, checkpoint)
    if isinstance(spec, Labelled):
        known = None if checkpoint is None or is_published(checkpoint) else saved_labels(checkpoint / FOLDER)
        examples = read_examples(spec, job.model.vocab_size, known)
        check_classes(job, examples)
        return examples
    assert isinstance(spec, DocumentsSpec)
    return prepare(spec, job.model.vocab_size, progress, specials=specials, models=TrainedModels())


def check_classes(job: Job, examples: Examples) -> None:
    """The head has a number for each class."""
    head, labels = getattr(job.model, "head", None), examples.task.labels
    if isinstance(head, (Classifier, TokenClassifier)) and head.n_classes < len(labels):
        shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise UserError(
            f"the examples have {len(labels)} classes ({shown}), the head only {head.n_classes}: "
            f"model.head.n_classes={len(labels)}"
        )


def task_rows(job: Job, objective: Objective, data: Data, part: str) -> Rows:
    """Rows of `train` or `held_out`. Read, they are those of every run; drawn, they depend on the job's seed."""
    if isinstance(data, Examples):
        return data.of(part, job.data.seq_len)
    assert isinstance(job.data, DocumentsSpec)
    vocabulary = Vocabulary(job.model.vocab_size, data.tokenizer, [source.train for source in data.sources.values()])
    corruption = objective.corruption(vocabulary, job.data.seq_len)
    rows = packed_rows(job, data, part, job.data.seq_len if corruption is None else corruption.raw_length)
    if corruption is None:
        if isinstance(job.data.form, SidedSpec):
            insist_learned(objective, rows, part)
        if isinstance(job.stage, (Preference, Reward)) and job.stage.shared_prompt:
            rows = SharedPromptRows(rows)
        return objective.rows(rows)
    if rows.ragged:  # a rule says so of training; here, of a checkpoint that is measured
        reason = "the objective makes its task of rows of one length"
        raise ConfigError([Problem("data.pack", "grouped", reason, "data/pack=document")])
    return CorruptedRows(rows, corruption, job.seed)


LOOK = 256
"""Rows that are looked at before a run begins."""


def insist_learned(objective: Objective, rows: Rows, part: str) -> None:
    """Records of one kind need not have everything (a score of the whole, or one of each step): some must have what is learned."""
    count = min(len(rows), LOOK)
    if count:
        chosen = np.arange(count, dtype=np.int64) * len(rows) // count
        counts = objective.denominators(rows.read(chosen))
        if missing := [name for name in objective.terms if not counts[name].item()]:
            raise UserError(
                f"{rows.file.path}: none of {count} records ({part}) has what the objective learns from (no {missing[0]} could be "
                f"computed): answers with a score want stage/objective=regression model/head=reward, steps with a score each want "
                f"stage/objective=process model/head=value, and a comparison wants answers that differ in rank"
            )


def packed_rows(job: Job, data: Prepared, part: str, width: int) -> Rows:
    """Plain rows of `width` tokens."""
    assert isinstance(job.data, DocumentsSpec)
    form = job.data.form.build()
    sources = {name: form.rows(job.data.pack, source.part(part), width) for name, source in data.sources.items()}
    if isinstance(job.data, Mixture):
        return MixedRows(sources, job.data.mix, job.trainer.max_steps, job.trainer.sizes(job.data.seq_len))
    (rows,) = sources.values()
    return rows
