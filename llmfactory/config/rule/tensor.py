"""Rules about matrices, rows and losses that are cut over the tensor-parallel group."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum

from llmfactory.config.rule.degrees import degrees_of, with_degrees
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, walk
from llmfactory.model.attention.spec import AttentionSpec, Gqa
from llmfactory.model.connector.spec import QFormer
from llmfactory.model.ffn.spec import FfnSpec, Moe, MoeSpec
from llmfactory.model.head.spec import Lm, LmUnitRows, Mlm
from llmfactory.model.mixer.spec import Gru, LinearAttention, Lstm, Mamba, Rnn
from llmfactory.model.spec import (
    DecoderOnly,
    EmbeddingModel,
    EncoderDecoder,
    EncoderOnly,
    KneserNey,
    Multimodal,
    NeuralNgram,
    Recurrent,
)
from llmfactory.objective.spec import ReplacedToken
from llmfactory.parallel.spec import ContextMethod, Mesh, Offload, Schedule, TensorForm, Zero
from llmfactory.run.spec import Device
from llmfactory.stage.spec import TrainingSpec


def tensor_parallel_cuts_evenly(job: Job) -> Iterator[Problem]:
    """Heads and hidden units are dealt out whole and evenly; key/value heads may be shared by processes instead."""
    tp = degrees_of(job).get("tp", 1)
    if tp == 1 or (isinstance(job.parallel, Mesh) and job.parallel.tensor_form is TensorForm.summa):
        return
    sizes = [size for path, part in _parts(job) for size in _sizes(path, part, job)]
    fits = next(degree for degree in range(tp, 0, -1) if tp % degree == 0 and all(_even(size, degree) for _, size, _ in sizes))
    for key, size, what in sizes:
        if not _even((size[0], size[1]), tp):
            reason = f"{size[0]} {what} cannot be dealt evenly to {tp} tensor-parallel processes"
            yield Problem("parallel.tp", tp, f"{reason} ({key}={size[0]})", with_degrees(job, tp=fits))
            return


def _even(size: tuple[int, bool], degree: int) -> bool:
    count, shared = size
    return count % degree == 0 or (shared and degree % count == 0)


def summa_cuts_squares(job: Job) -> Iterator[Problem]:
    """On a grid of q x q processes; what it cannot cut along both sides is left to the other form."""
    layout = job.parallel
    if not isinstance(layout, Mesh) or layout.tensor_form is not TensorForm.summa or layout.tp == 1:
        return
    other = "parallel.tensor_form=one_d"
    side = math.isqrt(layout.tp)

    def problem(reason: str) -> Problem:
        return Problem("parallel.tensor_form", "summa", reason, other)

    if side**2 != layout.tp:
        yield problem(f"the processes stand on a square grid, and tp={layout.tp} is no square")
        return
    for key in ("cp", "pp", "ep"):
        if getattr(layout, key) > 1:
            yield problem(f"it goes with data parallelism only, but parallel.{key}={getattr(layout, key)}")
            return
    if layout.sequence_parallel:
        yield problem("it cuts what lies between matrices already (parallel.sequence_parallel=true)")
    if not isinstance(job.model, (DecoderOnly, EncoderOnly)) or isinstance(job.model, Multimodal):
        yield problem("it cuts decoders and encoders of text only")
        return
    objective = job.stage.objective if isinstance(job.stage, TrainingSpec) else None
    if objective is not None and (objective.answers != "tokens" or isinstance(objective, ReplacedToken)):
        yield problem("rows that fill the grid up count nothing only where labels are tokens")
    if job.model.dim % side:
        yield problem(f"model.dim={job.model.dim} cannot be cut into {side} equal pieces")
    if job.model.vocab_size % side:
        yield problem(f"model.vocab_size={job.model.vocab_size} cannot be cut into {side} equal pieces")
    for path, part in walk(job.model, "model"):
        if isinstance(part, AttentionSpec) and not isinstance(part, Gqa):
            yield problem(f"{path} is attention of another kind than gqa")
        elif isinstance(part, MoeSpec):
            yield problem(f"{path} is a mixture of experts")
        else:
            for key, (count, _), what in _sizes(path, part, job):
                if count % side:
                    reason = f"{key}={count} {what} cannot be dealt to {side} columns of processes"
                    yield Problem("parallel.tensor_form", "summa", reason, f"{other} {with_degrees(job, tp=1)}")


def _parts(job: Job) -> Iterator[tuple[str, Spec]]:
    yield from walk(job.model, "model")
    objective = job.stage.objective if isinstance(job.stage, TrainingSpec) else None
    if isinstance(objective, ReplacedToken) and isinstance(job.model, EncoderOnly):
        yield from walk(objective.generator(job.model), "stage.objective.generator_scale: the generator's ")


def _sizes(path: str, part: Spec, job: Job) -> Iterator[tuple[str, tuple[int, bool], str]]:
    """(key, (how many, whether processes may share one), what they are) of what is dealt out."""
    if isinstance(part, (AttentionSpec, LinearAttention, QFormer)):
        yield f"{path}.n_heads", (part.n_heads, False), "heads"
    if isinstance(part, Gqa) and part.n_kv_heads is not None:
        yield f"{path}.n_kv_heads", (part.n_kv_heads, True), "key/value heads"
    if isinstance(part, (QFormer, FfnSpec)):
        yield f"{path}.hidden", (part.hidden, False), "hidden units"
    if isinstance(part, Moe) and part.shared_hidden:
        yield f"{path}.shared_hidden", (part.shared_hidden, False), "hidden units"
    if isinstance(part, Mamba):
        yield f"{path}.expand", (part.expand * job.model.dim, False), "inner channels"


def tensor_parallel_has_matrices_to_cut(job: Job) -> Iterator[Problem]:
    tp = degrees_of(job).get("tp", 1)
    if tp == 1:
        return
    if isinstance(job.model, (NeuralNgram, KneserNey, EmbeddingModel)):
        kind = "a model of word vectors" if isinstance(job.model, EmbeddingModel) else "an n-gram model"
        yield Problem("parallel.tp", tp, f"{kind} has no matrices to cut", with_degrees(job, tp=1))
    if isinstance(job.model, Recurrent) and isinstance(job.model.mixer, (Lstm, Gru, Rnn)):
        reason = "each step of a recurrence multiplies the whole state, so a cut one would be gathered at every step"
        yield Problem("parallel.tp", tp, reason, with_degrees(job, tp=1))


def sequence_parallel_cuts_rows(job: Job) -> Iterator[Problem]:
    layout = job.parallel
    if not (isinstance(layout, Mesh) and layout.sequence_parallel):
        return
    off = "parallel.sequence_parallel=false"
    if layout.tp == 1:
        yield Problem("parallel.sequence_parallel", True, "rows are cut over the tensor-parallel processes: tp=1 has none", off)
        return
    if isinstance(job.model, (Recurrent, NeuralNgram, KneserNey, EmbeddingModel)):
        yield Problem("parallel.sequence_parallel", True, "a recurrent layer needs the whole row", off)
        return
    noisy = [path for path, part in walk(job.model, "model") if isinstance(part, MoeSpec) and part.jitter]
    if noisy:
        reason = f"processes that hold the same row must route it alike, but would draw other noise ({noisy[0]}.jitter)"
        yield Problem("parallel.sequence_parallel", True, reason, " ".join(f"{path}.jitter=0" for path in noisy))
    pieces, length_follows = layout.tp, isinstance(job.model, EncoderDecoder)
    if isinstance(job.stage, TrainingSpec) and job.data.seq_len % pieces and layout.cp == 1 and not length_follows:
        reason = f"rows of {job.data.seq_len} tokens are cut into {pieces} equal pieces (tp)"
        yield Problem("data.seq_len", job.data.seq_len, reason, f"data.seq_len={job.data.seq_len // pieces * pieces or pieces}")


def loss_parallel_has_a_cut_vocabulary(job: Job) -> Iterator[Problem]:
    layout = job.parallel
    if not (isinstance(layout, Mesh) and layout.loss_parallel):
        return
    off = "parallel.loss_parallel=false"
    objective = job.stage.objective if isinstance(job.stage, TrainingSpec) else None
    if layout.tp == 1:
        yield Problem("parallel.loss_parallel", True, "logits are cut over the tensor-parallel processes: tp=1 has none", off)
    elif not any(isinstance(part, (Lm, LmUnitRows, Mlm)) for _, part in walk(job.model, "model")):
        yield Problem("parallel.loss_parallel", True, "the model's head has no logits over a vocabulary", off)
    elif objective is not None and objective.answers != "tokens":
        yield Problem("parallel.loss_parallel", True, "the objective asks for no token of the vocabulary", off)
    elif job.model.vocab_size % layout.tp:
        reason = f"model.vocab_size={job.model.vocab_size} cannot be cut into {layout.tp} equal pieces"
        yield Problem("parallel.loss_parallel", True, reason, off)


def offload_has_what_to_do(job: Job) -> Iterator[Problem]:
    """Weights leave a device through FSDP, which a single process does without; on the CPU they are used where their files lie."""
    layout = job.parallel
    if not isinstance(layout, Mesh) or layout.offload is Offload.none or job.launch.world() > 1:
        return
    off = "parallel.offload=none parallel.offload_dir=null"
    if layout.offload is Offload.cpu or not isinstance(job.stage, TrainingSpec):
        yield Problem("parallel.offload", layout.offload.name, "a single process holds everything itself", off)
    elif job.trainer.device is not Device.cpu:
        reason = f"a single process works on weights in files on the CPU only, but trainer.device={job.trainer.device.name}"
        yield Problem("parallel.offload", "disk", reason, "trainer.device=cpu")


def compiled_layouts_are_proven(job: Job) -> Iterator[Problem]:
    """The compiler looks into blocks, where the messages of a layout are; those that were shown to be right there may be compiled."""
    layout = job.parallel
    if not job.trainer.compile:
        return
    degrees = degrees_of(job)
    cut = any(degrees.get(axis, 1) > 1 for axis in ("tp", "cp", "pp", "ep"))
    reason = None
    if isinstance(layout, Mesh) and layout.tensor_form is TensorForm.summa:
        reason = "products over a grid of processes (parallel.tensor_form=summa) are not proven where compiled"
    elif isinstance(layout, Mesh) and layout.pp > 1 and layout.schedule in (Schedule.zero_bubble, Schedule.zero_bubble_v):
        reason = (
            f"parallel.schedule={layout.schedule.name} takes the backward pass of each linear map apart, which a compiler joins"
        )
    elif cut and isinstance(layout, Mesh) and layout.recompute:
        reason = "compiled blocks that hold messages, or are stages of a pipeline, are not proven to be computed again rightly"
    elif cut and _drops(job):
        reason = "which processes draw the same dropout masks is decided by hooks, which a compiled block does not stop for"
    if reason is not None:
        yield Problem("trainer.compile", True, reason, "trainer.compile=false")


def _drops(job: Job) -> bool:
    """Whether the model has dropout anywhere."""
    return any(getattr(part, one.name) for _, part in walk(job.model) for one in fields(part) if one.name.endswith("dropout"))


def keys_of_an_axis_need_the_axis(job: Job) -> Iterator[Problem]:
    """What would be accepted and do nothing."""
    layout = job.parallel
    if not isinstance(layout, Mesh):
        return
    for key, neutral, axis, there in (
        ("tensor_form", TensorForm.one_d, "tp", layout.tp > 1),
        ("context_method", ContextMethod.ring, "cp", layout.cp > 1),
        ("schedule", Schedule.one_f_one_b, "pp", layout.pp > 1),
        ("zero", Zero.parameters, "dp_shard", layout.dp_shard != 1),
        ("offload_dir", None, "offload=disk", layout.offload is Offload.disk),
        ("recompute_every", 1, "recompute=true", layout.recompute),
        ("recompute_keep", [], "recompute=true", layout.recompute),
        ("recompute_budget_mb", None, "recompute=true", layout.recompute),
    ):
        value = getattr(layout, key)
        if value != neutral and not there:
            shown = value.name if isinstance(value, Enum) else value
            rest: object = "null" if neutral is None else neutral.name if isinstance(neutral, Enum) else neutral
            missing = f"parallel.{axis}" + ("=1" if "=" not in axis else " is not set")
            yield Problem(f"parallel.{key}", shown, f"says nothing: {missing}", f"parallel.{key}={rest}")
