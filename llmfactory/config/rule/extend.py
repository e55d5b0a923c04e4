"""Rules about models that get more tokens."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.data.spec import DocumentsSpec
from llmfactory.data.tokenizer.spec import Extended
from llmfactory.parallel.spec import DeepSpeed, Mesh
from llmfactory.stage.spec import Extend, Pretrain


def more_tokens_are_learned_from_documents(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, Extend):
        return
    if not isinstance(job.data, DocumentsSpec):
        reason = "new pieces are learned from documents, and these are labelled examples"
        yield Problem("data", stem(type(job.data)), reason, "data=pydocs")
    if not isinstance(job.data.tokenizer, Extended):
        reason = "stage=extend needs to know how many new pieces to learn"
        repair = "data/tokenizer=extended data.tokenizer.new_tokens=5000"
        yield Problem("data.tokenizer", stem(type(job.data.tokenizer)), reason, repair)
    if job.launch.world() > 1:
        yield Problem("launch", stem(type(job.launch)), "one process extends a model", "launch=single parallel=single")


def an_extended_tokenizer_has_a_base(job: Job) -> Iterator[Problem]:
    tokenizer = job.data.tokenizer
    if isinstance(tokenizer, Extended) and tokenizer.base is None and not isinstance(job.stage, Extend):
        reason = "only stage=extend knows a tokenizer to begin with, that of its init"
        yield Problem("data.tokenizer.base", None, reason, "data.tokenizer.base=tokenizer.json")


def the_first_phase_has_tables(job: Job) -> Iterator[Problem]:
    """Of a pipeline some processes, and DeepSpeed's own engine, step without asking which parameters learn."""
    if not isinstance(job.stage, Pretrain) or not job.stage.embeddings_only_steps:
        return
    reason = None
    if job.model.graph == "counts":
        reason = "this model is fitted by counting: it has no steps"
    elif isinstance(job.parallel, DeepSpeed):
        reason = "DeepSpeed steps by itself, with all parameters"
    elif isinstance(job.parallel, Mesh) and job.parallel.pp > 1:
        reason = "of a pipeline's processes only the first and the last have tables, and the others would have nothing to do"
    if reason is not None:
        yield Problem("stage.embeddings_only_steps", job.stage.embeddings_only_steps, reason, "stage.embeddings_only_steps=0")
