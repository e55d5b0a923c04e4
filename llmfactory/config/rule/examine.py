"""Rules about measuring models record by record."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.data.form.spec import Chat, Preference, Ranking, RecordSpec
from llmfactory.data.spec import DocumentsSpec
from llmfactory.objective.spec import answers_of
from llmfactory.stage.spec import Examine


def records_are_examined(job: Job) -> Iterator[Problem]:
    """One after the other, of a kind whose answers have a likelihood or are compared."""
    if not isinstance(job.stage, Examine):
        return
    form = job.data.form if isinstance(job.data, DocumentsSpec) else None
    if not isinstance(form, (Chat, Preference, Ranking)):
        reason = "stage=examine measures answers: of conversations, pairs or rankings"
        repair = "data/form=chat" if isinstance(form, RecordSpec) else "data=pydoc_qa"
        yield Problem("data.form", stem(type(job.data if form is None else form)), reason, repair)


def a_left_to_right_model_is_examined(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, Examine):
        return
    graph, says = job.model.graph, answers_of(job.model)
    if graph not in ("decoder", "recurrent"):
        reason = f"a model of kind {graph} gives no answer a likelihood, token by token"
        yield Problem("model", stem(type(job.model)), reason, "model=llama_tiny")
    elif says not in ("tokens", "scalar"):
        reason = f"its answer is {says}: stage=examine measures what is written (tokens) or judged (scalar)"
        yield Problem("model.head", stem(type(getattr(job.model, "head", job.model))), reason, "model/head=lm")


def who_judges_is_asked(job: Job) -> Iterator[Problem]:
    """A reward model writes nothing that another could judge."""
    stage = job.stage
    if isinstance(stage, Examine) and answers_of(job.model) == "scalar" and (stage.judge is not None or stage.samples):
        key, value = ("judge", stage.judge) if stage.judge is not None else ("samples", stage.samples)
        repair = "stage.judge=null" if key == "judge" else "stage.samples=0"
        yield Problem(f"stage.{key}", value, "the model of init is a reward model, and writes no answers", repair)
