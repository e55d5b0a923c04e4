"""Rules about rows that are cut along their length over the context-parallel processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

from llmfactory.config.rule.degrees import degrees_of, with_degrees
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import Spec, stem, walk
from llmfactory.model.attention.spec import AttentionSpec
from llmfactory.model.spec import EncoderDecoder, EncoderOnly, VisionSpec
from llmfactory.objective.spec import Classify, ReplacedToken, RewardSpec, Span
from llmfactory.parallel.spec import ContextMethod, Mesh, TensorForm
from llmfactory.stage.spec import TrainingSpec


def rows_are_cut_into_equal_blocks(job: Job) -> Iterator[Problem]:
    """Two blocks a process. An encoder-decoder's rows, whose lengths follow from the objective, are padded instead."""
    layout = job.parallel
    if not _cuts(job) or not isinstance(layout, Mesh) or isinstance(job.model, EncoderDecoder):
        return
    pieces = 2 * layout.cp * (layout.tp if layout.sequence_parallel else 1)
    length = job.data.seq_len
    if length % pieces:
        reason = (
            f"rows of {length} tokens are cut into {pieces} equal blocks (2 x cp{' x tp' if layout.sequence_parallel else ''})"
        )
        yield Problem("data.seq_len", length, reason, f"data.seq_len={length // pieces * pieces or pieces}")


def context_parallel_cuts_attention(job: Job) -> Iterator[Problem]:
    """What else looks at other tokens of a row than attention does."""
    if not _cuts(job):
        return
    objective = job.stage.objective if isinstance(job.stage, TrainingSpec) else None
    reason = None
    if job.model.graph == "recurrent":
        reason = "each token of a recurrent model needs the one before it, so a row has to stay on one process"
    elif isinstance(objective, (Classify, Span)) or (isinstance(objective, RewardSpec) and not objective.each_token):
        what = "a softmax over a row's tokens" if isinstance(objective, Span) else "one answer about a whole text"
        reason = f"stage/objective={stem(type(objective))} asks for {what}, so a row has to stay on one process"
    if reason is not None:
        yield Problem("parallel.cp", degrees_of(job)["cp"], reason, whole_rows(job))


def ring_drops_no_attention(job: Job) -> Iterator[Problem]:
    """The backward pass computes the probabilities again, and would have to drop the same ones of every block."""
    if not _cuts(job, ContextMethod.ring):
        return
    for path, part in _attentions(job):
        dropout = getattr(part, "dropout", 0.0)
        if dropout:
            reason = f"attention round a ring drops no probabilities, but {path}.dropout={dropout}"
            yield Problem("parallel.context_method", "ring", reason, "parallel.context_method=gather")
            return


def ulysses_deals_heads_evenly(job: Job) -> Iterator[Problem]:
    """Query heads; of key/value heads there may be fewer than processes."""
    layout = job.parallel
    if not _cuts(job, ContextMethod.ulysses) or not isinstance(layout, Mesh):
        return
    tensor = layout.tp if layout.tensor_form is TensorForm.one_d else math.isqrt(layout.tp)
    for path, part in _attentions(job):
        if part.n_heads % (tensor * layout.cp):
            dealt = f"{layout.cp} context-parallel processes" + (
                f" of each of {tensor} tensor-parallel ones" if tensor > 1 else ""
            )
            reason = f"{path}.n_heads={part.n_heads} heads cannot be dealt evenly to {dealt}"
            yield Problem("parallel.context_method", "ulysses", reason, "parallel.context_method=gather")
            return


def _cuts(job: Job, method: ContextMethod | None = None) -> bool:
    layout = job.parallel
    return (
        isinstance(job.stage, TrainingSpec)
        and isinstance(layout, Mesh)
        and layout.cp > 1
        and method in (None, layout.context_method)
    )


def whole_rows(job: Job) -> str:
    """Overrides for the same processes without context parallelism."""
    assert isinstance(job.parallel, Mesh)
    ring = "" if job.parallel.context_method is ContextMethod.ring else " parallel.context_method=ring"
    return with_degrees(job, cp=1) + ring


def _attentions(job: Job) -> Iterator[tuple[str, AttentionSpec]]:
    """Those over the row's tokens, by path; a picture's squares are not cut."""
    roots: list[tuple[str, Spec]] = [("model", job.model)]
    objective = job.stage.objective if isinstance(job.stage, TrainingSpec) else None
    if isinstance(objective, ReplacedToken) and isinstance(job.model, EncoderOnly):
        with suppress(ConfigError):  # there is none of that size: another rule says so
            roots.append(("the generator's model", objective.generator(job.model)))
    for name, root in roots:
        pictures = [path for path, part in walk(root, name) if isinstance(part, VisionSpec)]
        for path, part in walk(root, name):
            if isinstance(part, AttentionSpec) and not any(path.startswith(f"{inner}.") for inner in pictures):
                yield path, part
