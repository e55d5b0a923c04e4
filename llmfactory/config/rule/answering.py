"""Rules about stages whose model answers prompts."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.register import PACKAGE, packages
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem, walk
from llmfactory.data.form.spec import Prompts
from llmfactory.data.spec import DocumentsSpec
from llmfactory.stage.grader.spec import Function
from llmfactory.stage.spec import Evaluate, Rejection, RlSpec

PROMPTS = "data=prompts data.source.files=[my.jsonl]"


def prompts_are_answered(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, Rejection):
        return
    form = job.data.form if isinstance(job.data, DocumentsSpec) else None
    if not isinstance(form, Prompts):
        reason = "stage=rejection answers prompts, data=prompts has such"
        yield Problem("data", stem(type(job.data if form is None else form)), reason, PROMPTS)


def prompts_have_no_answers_to_measure(job: Job) -> Iterator[Problem]:
    """A loss of prompts would be one of what nobody has learned to write."""
    if isinstance(job.stage, Evaluate) and isinstance(job.data, DocumentsSpec) and isinstance(job.data.form, Prompts):
        reason = "in prompts there is no answer whose likelihood could be measured: what answers get, stage=rejection tells"
        yield Problem("data.form", "prompts", reason, "data=chat data.source.files=[my.jsonl]")


def answers_fit_behind_prompts(job: Job) -> Iterator[Problem]:
    """Else prompts would be cut off on the left, where they are long, without a word."""
    if not isinstance(job.stage, (Rejection, RlSpec)) or job.model.graph == "encoder_decoder":
        return
    form = job.data.form if isinstance(job.data, DocumentsSpec) else None
    if not isinstance(form, Prompts):
        return
    prompt, room = form.max_tokens or job.data.seq_len, job.model.max_positions
    if prompt + job.stage.max_tokens <= room:
        return
    reason = (
        f"a prompt of data.form.max_tokens={prompt} and an answer of stage.max_tokens={job.stage.max_tokens} do not fit into the "
        f"model's {room} positions"
    )
    left = room - job.stage.max_tokens
    if left >= 8:
        yield Problem("data.form.max_tokens", prompt, reason, f"data.form.max_tokens={left}")
    else:
        yield Problem("stage.max_tokens", job.stage.max_tokens, reason, f"stage.max_tokens={max(1, room - prompt)}")


def functions_come_from_plugins(job: Job) -> Iterator[Problem]:
    """What a config can call is what the user has named as code of theirs."""
    for path, spec in walk(job.stage, "stage"):
        if isinstance(spec, Function):
            package = spec.call.partition(":")[0].partition(".")[0]
            if package == PACKAGE or package not in packages(plugins=job.plugins):
                named = ",".join([*job.plugins, package])
                yield Problem(f"{path}.call", spec.call, f"{package} is no plugin of this job", f"plugins=[{named}]")
