"""Rules about what is read, and how it is made ready."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.data.form.spec import Text
from llmfactory.data.spec import DocumentsSpec
from llmfactory.stage.spec import Prepare


def documents_are_prepared(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, Prepare) and not isinstance(job.data, DocumentsSpec):
        reason = "labelled examples are read by the job that uses them; there is nothing to prepare"
        yield Problem("data", stem(type(job.data)), reason, "stage=describe")


def records_are_compared_only(job: Job) -> Iterator[Problem]:
    """Steps judge and change text; a record is JSON with texts in it."""
    if not isinstance(job.data, DocumentsSpec) or isinstance(job.data.form, Text):
        return
    for name, step in job.data.clean.items():
        if not step.whole:
            kept = ",".join(other for other, one in job.data.clean.items() if one.whole)
            reason = f"it works on plain text, and the documents of data/form={stem(type(job.data.form))} are records"
            yield Problem(f"data.clean.{name}", stem(type(step)), reason, f"data/clean=[{kept}]")


def steps_are_for_sources_that_there_are(job: Job) -> Iterator[Problem]:
    if not isinstance(job.data, DocumentsSpec):
        return
    known = list(job.data.named())
    for name, step in job.data.clean.items():
        if strange := [source for source in step.sources if source not in known]:
            kept = ",".join(source for source in step.sources if source in known)
            reason = f"there is no source {strange[0]!r}; there are {', '.join(known)}"
            yield Problem(f"data.clean.{name}.sources", step.sources, reason, f"data.clean.{name}.sources=[{kept}]")
