"""Rules about rows: how they are packed, and mixed from several sources."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.data.form.spec import SidedSpec
from llmfactory.data.pack.spec import Document, Grouped
from llmfactory.data.spec import DocumentsSpec, Mixture
from llmfactory.objective.spec import Causal, answers_of, natural
from llmfactory.parallel.spec import Mesh
from llmfactory.stage.spec import Reweight, TrainingSpec


def rows_of_one_length_where_they_are_asked_for(job: Job) -> Iterator[Problem]:
    """Length-grouped rows are as long as the longest of their batch."""
    data, layout = job.data, job.parallel
    if not isinstance(data, DocumentsSpec) or not isinstance(data.pack, Grouped):
        return
    reason = None
    if isinstance(data, Mixture):
        reason = "samples of several sources take turns, so that rows of similar length do not come together"
    elif isinstance(layout, Mesh) and layout.pp > 1:
        reason = f"the stages of a pipeline (parallel.pp={layout.pp}) pass on rows of one length"
    elif isinstance(layout, Mesh) and layout.cp > 1:
        reason = f"context parallelism (parallel.cp={layout.cp}) cuts rows of one length into equal blocks"
    elif isinstance(job.stage, TrainingSpec) and not isinstance(job.stage.objective, Causal) and not job.stage.objective.kinds:
        reason = f"the objective {stem(type(job.stage.objective))} makes its task of rows of one length"
    if reason is not None:
        yield Problem("data.pack", "grouped", reason, "data/pack=best_fit" if isinstance(data, Mixture) else "data/pack=document")


def records_stand_in_rows_of_their_own(job: Job) -> Iterator[Problem]:
    if not isinstance(job.data, DocumentsSpec) or not isinstance(job.data.form, SidedSpec):
        return
    if not isinstance(job.data.pack, (Document, Grouped)):
        reason = f"a row of data/form={stem(type(job.data.form))} is one record with all its answers"
        yield Problem("data.pack", stem(type(job.data.pack)), reason, "data/pack=document")


def weights_are_drawn_by(job: Job) -> Iterator[Problem]:
    """Counting reads every row once."""
    if isinstance(job.data, Mixture) and isinstance(job.stage, TrainingSpec) and job.model.graph == "counts":
        reason = "this model counts every row once, so that weights of sources would say nothing"
        yield Problem("data.mix", stem(type(job.data.mix)), reason, "model=llama_tiny")


def reweighting_compares_two_small_models(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, Reweight):
        return
    if not isinstance(job.data, Mixture) or len(job.data.sources) < 2:
        reason = "there are no weights to find: stage=reweight takes the sources of a mixture, two at least"
        yield Problem("data", stem(type(job.data)), reason, "data/source=[pydocs,pycode]")
    if job.launch.world() > 1:
        reason = "stage=reweight trains its small models in one process"
        yield Problem("launch", stem(type(job.launch)), reason, "launch=single parallel=single")
    if natural(job.model.graph, answers_of(job.model)) is not Causal or job.model.graph == "counts":
        reason = "the excess loss that stage=reweight looks at is that of the next token, and this model predicts something else"
        yield Problem("model", stem(type(job.model)), reason, "model=llama_tiny")
    if job.init is not None:
        reason = "stage=reweight compares what two new models learn, and would not use these weights"
        yield Problem("init", job.init, reason, "init=null")
