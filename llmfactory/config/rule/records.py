"""Rules about data of records: conversations, preferences."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.data.form.spec import SIDED, WORDS, Preference, Ranking, RecordSpec, SidedSpec
from llmfactory.data.spec import DocumentsSpec, Labelled
from llmfactory.objective.spec import Causal, Tilted
from llmfactory.stage.spec import Evaluate, Sft, TrainingSpec


def conversations_are_continued(job: Job) -> Iterator[Problem]:
    """Which tokens are learned is marked; only an objective that predicts the next one keeps to the marks."""
    if not isinstance(job.stage, (TrainingSpec, Evaluate)) or not isinstance(job.data, DocumentsSpec):
        return
    form = job.data.form
    if isinstance(form, SidedSpec) or (isinstance(job.stage, TrainingSpec) and job.stage.objective.kinds):
        return  # `records_are_of_the_kind_that_is_learned`
    if isinstance(job.stage, Sft):
        return  # `a_stage_learns_what_it_is_for`
    if (
        isinstance(form, RecordSpec)
        and isinstance(job.stage, TrainingSpec)
        and not isinstance(job.stage.objective, (Causal, Tilted))
    ):
        name = stem(type(job.stage.objective))
        reason = "it chooses by itself what is predicted, in conversations that is what the assistant writes"
        yield Problem("stage.objective", name, reason, "stage/objective=causal")


def records_are_of_the_kind_that_is_learned(job: Job) -> Iterator[Problem]:
    """Answers that are compared or judged are learned by objectives that compare or judge, and by no other. What a trained model is
    measured by, its checkpoint says when it is opened."""
    if not isinstance(job.stage, TrainingSpec):
        return
    objective, name = job.stage.objective, stem(type(job.stage.objective))
    form = job.data.form if isinstance(job.data, DocumentsSpec) else None
    kind = form.kind if isinstance(form, SidedSpec) else None
    if kind in objective.kinds or (kind is None and not objective.kinds):
        return
    if objective.kinds:
        wanted = next(stem(cls) for cls in SIDED if cls.kind == objective.kinds[0])
        reason = f"the objective {name} learns from answers that are {WORDS[objective.kinds[0]]}, data={wanted} has such"
        files = "" if isinstance(form, RecordSpec) else " data.source.files=[my.jsonl]"
        yield Problem("data", stem(type(job.data if form is None else form)), reason, f"data={wanted}{files}")
    else:
        assert form is not None
        reason = f"its answers are {WORDS[str(kind)]}, and the objective {name} learns from text and conversations"
        yield Problem("data.form", stem(type(form)), reason, LEARNED_BY[str(kind)])


LEARNED_BY = {
    "pair": "stage=reward model/head=reward",
    "judged": "data/form=chat",
    "ranking": "stage=reward stage/objective=ranking model/head=reward",
    "scored": "stage=reward stage/objective=regression model/head=reward",
    "prompt": "data/form=chat",
}
"""Overrides that learn from such records."""


def instructions_have_answers(job: Job) -> Iterator[Problem]:
    """What stage=sft learns is marked in conversations; labelled examples have a text to write."""
    if not isinstance(job.stage, Sft) or isinstance(job.data, Labelled):
        return
    form = job.data.form if isinstance(job.data, DocumentsSpec) else None
    if not isinstance(form, RecordSpec):
        reason = "in running text there is no answer to learn: stage=sft takes conversations"
        repair = (
            "data=examples data/task=rewrite data.files=[my.jsonl]" if job.model.graph == "encoder_decoder" else CONVERSATIONS
        )
        yield Problem("data", stem(type(job.data)), reason, repair)


CONVERSATIONS = "data=chat data.source.files=[my.jsonl]"


def records_fit_into_rows(job: Job) -> Iterator[Problem]:
    if not isinstance(job.data, DocumentsSpec) or not isinstance(job.data.form, RecordSpec):
        return
    form, width = job.data.form, job.data.seq_len
    if form.max_tokens is None:
        return
    answers = form.most if isinstance(form, Ranking) else 2 if isinstance(form, Preference) else 1
    if form.max_tokens * answers > width:
        reason = f"a longer record than a row (data.seq_len={width}) would lose its beginning"
        if answers > 1:
            reason = f"a row (data.seq_len={width}) holds all {answers} answers of a record, each with its prompt"
        yield Problem("data.form.max_tokens", form.max_tokens, reason, f"data.form.max_tokens={width // answers}")
