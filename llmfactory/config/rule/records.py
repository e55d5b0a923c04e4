"""Rules about data of records: conversations, preferences."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.data.form.spec import RecordSpec, SidedSpec
from llmfactory.data.spec import DocumentsSpec
from llmfactory.objective.spec import Causal
from llmfactory.stage.spec import Evaluate, TrainingSpec


def conversations_are_continued(job: Job) -> Iterator[Problem]:
    """Which tokens are learned is marked; only an objective that predicts the next one keeps to the marks."""
    if not isinstance(job.stage, (TrainingSpec, Evaluate)) or not isinstance(job.data, DocumentsSpec):
        return
    form = job.data.form
    if isinstance(form, SidedSpec):
        reason = "its rows hold more than one text, and this stage learns from single ones: prepare them, or take conversations"
        yield Problem("data.form", stem(type(form)), reason, "data/form=chat")
    elif isinstance(form, RecordSpec) and isinstance(job.stage, TrainingSpec) and not isinstance(job.stage.objective, Causal):
        name = stem(type(job.stage.objective))
        reason = "it chooses by itself what is predicted, in conversations that is what the assistant writes"
        yield Problem("stage.objective", name, reason, "stage/objective=causal")


def records_fit_into_rows(job: Job) -> Iterator[Problem]:
    if not isinstance(job.data, DocumentsSpec) or not isinstance(job.data.form, RecordSpec):
        return
    most, width = job.data.form.max_tokens, job.data.seq_len
    if most is not None and most > width:
        reason = f"a longer record than a row (data.seq_len={width}) would lose its beginning"
        yield Problem("data.form.max_tokens", most, reason, f"data.form.max_tokens={width}")
