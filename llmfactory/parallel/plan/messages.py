"""What a process sends in an optimizer step: bytes by operation and group.

The bytes of a message are those that one process sends by the algorithms with the least traffic, as `parallel/volume.py` counts
them: with n processes, 2 (n - 1) / n S for an all-reduce of S, (n - 1) / n S for an all-gather to S, a reduce-scatter of S and an
all-to-all of S. What is sent:

- FSDP: weights are gathered and gradients reduced unit by unit (each layer, each layer's experts, the rest), in the format in
  which they are stored; how often is the table of `parallel/shard.py`. Copies are summed once a step.
- Tensor parallelism: where a row-cut matrix ends, a sum forward and one backward; with sequence parallelism each of them is a
  reduce-scatter there and an all-gather where the column-cut ones begin. The embedding's vectors are summed. The head's matrix
  is gathered for each micro-batch unless the loss is computed from cut logits. Gradients of copies are summed.
- Context parallelism: see `_context`. Pipelines: the stream to the next stage, its gradient back. Experts: visits there and back.

A few numbers a step (loss, norm, counts of tokens) are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmfactory.parallel.plan.arrangement import Arrangement, Pace
from llmfactory.parallel.plan.memory import tokens_of
from llmfactory.parallel.plan.pieces import Bundle, Piece, Weight, Where, Work, borrowed
from llmfactory.parallel.spec import ContextMethod, Zero


@dataclass(frozen=True, slots=True)
class Message:
    """Messages of one kind."""

    what: str
    """What travels."""
    operation: str
    """all_reduce, all_gather, reduce_scatter, all_to_all or send."""
    group: str
    """Name of the group (`Arrangement.group`)."""
    sent: float
    """Bytes that a process sends with each."""
    count: float
    """How many there are in a step."""
    hidden: bool = False
    """Whether computation goes on meanwhile."""

    @property
    def total(self) -> float:
        """Bytes of a step."""
        return self.sent * self.count


def once(n: int) -> float:
    """Share of a tensor that a process sends in an all-gather, a reduce-scatter or an all-to-all."""
    return (n - 1) / n


def messages(bundles: Sequence[Bundle], process: int, at: Arrangement, rate: Pace, work: Work) -> list[Message]:
    """Of a process that is number `process` of its pipeline and has these pieces."""
    found = [
        *_weights_and_gradients(bundles, at, rate, work),
        *_tensor(bundles, at, rate, work),
        *_context(bundles, at, rate, work),
        *_experts(bundles, at, rate, work),
        *_pipeline(bundles, process, at, rate, work),
    ]
    return [one for one in found if one.sent > 0 and one.count > 0]


def units(bundles: Sequence[Bundle]) -> Iterator[tuple[str, tuple[Weight, ...], int]]:
    """What FSDP gathers at once: (`layer`, `experts` or `rest`, weights, how many such units there are)."""
    rest = borrowed(bundles)
    for bundle in bundles:
        if bundle.piece.where is not Where.layer:
            rest += bundle.piece.weights
            continue
        for name, are_experts in (("layer", False), ("experts", True)):
            weights = tuple(one for one in bundle.piece.weights if one.is_expert is are_experts)
            if weights:
                yield name, weights, bundle.owned
    if rest:
        yield "rest", rest, 1


def _weights_and_gradients(bundles: Sequence[Bundle], at: Arrangement, rate: Pace, work: Work) -> Iterator[Message]:
    zero, wide, turns = at.mesh.zero, work.formats.wide, rate.micro_batches
    again = zero is Zero.parameters and at.shards > 1
    reductions = 1 if zero is Zero.optimizer else turns
    for name, weights, count in units(bundles):
        are_experts = name == "experts" and at.ep > 1
        shards, copies = (at.expert_shards, at.expert_copies) if are_experts else (at.shards, at.copies)
        prefix = "expert_" if are_experts else ""
        piece = wide * sum(one.shard(at.tp, at.ep, shards, padded=True) for one in weights)
        trained = wide * sum(one.shard(at.tp, at.ep, shards, padded=True) for one in weights if one.trains)
        gathers = (turns if name == "rest" else 2 * turns) if again else 1
        yield Message(f"weights ({name})", "all_gather", f"{prefix}shards", (shards - 1) * piece, count * gathers, True)
        yield Message(
            f"gradients ({name})", "reduce_scatter", f"{prefix}shards", (shards - 1) * trained, count * reductions, True
        )
        yield Message(f"gradients ({name})", "all_reduce", f"{prefix}copies", 2 * once(copies) * trained, count, True)
    if at.tp > 1:
        copied = wide * sum(
            count * sum(one.elements for one in weights if one.trains and one.cut_dim(at.tp) is None)
            for _, weights, count in units(bundles)
        )
        yield Message("gradients of copies", "all_reduce", "tp", 2 * once(at.tp) * copied, reductions)


def _tensor(bundles: Sequence[Bundle], at: Arrangement, rate: Pace, work: Work) -> Iterator[Message]:
    if at.tp == 1:
        return
    form, turns, share = work.formats, rate.micro_batches, once(at.tp)
    tokens = rate.rows * tokens_of(at, work)
    forwards = 2 if at.mesh.recompute else 1
    uses = [(bundle.piece, bundle.uses) for bundle in bundles]
    joined = sum(count * sum(piece.joins) * piece.tokens for piece, count in uses) * tokens * form.low
    parts = sum(count * len(piece.joins) for piece, count in uses if piece.tokens) or 1
    if at.sequence_parallel:
        read = sum(count * len(piece.joins) * piece.width * piece.tokens for piece, count in uses) * tokens * form.wide
        yield Message("sums", "reduce_scatter", "tp", share * joined / parts, parts * turns * forwards)
        yield Message("inputs", "all_gather", "tp", share * read / parts, parts * turns * forwards)
        yield Message("gradients of sums", "all_gather", "tp", share * joined / parts, parts * turns)
        yield Message("gradients of inputs", "reduce_scatter", "tp", share * read / parts, parts * turns)
        ends = [piece for piece, _ in uses if piece.where is Where.rest and piece.name.rpartition(".")[2] == "norm"]
        whole = sum(piece.width * piece.tokens for piece in ends) * tokens * form.wide
        yield Message("last vectors", "all_gather", "tp", share * whole, turns)
        yield Message("gradients of last vectors", "reduce_scatter", "tp", share * whole, turns)
    else:
        yield Message("sums", "all_reduce", "tp", 2 * share * joined / parts, parts * turns * forwards)
        yield Message("gradients of sums", "all_reduce", "tp", 2 * share * joined / parts, parts * turns)
    for piece, _ in uses:
        if piece.where is Where.rest and piece.table is not None and piece.table.cut_dim(at.tp) == 0:
            looked_up = tokens * piece.table.shape[-1] * form.wide
            yield Message("embeddings", "all_reduce", "tp", 2 * share * looked_up, 2 * turns)
        if piece.where is Where.head:
            yield from _head(piece, at, rate, work)


def _head(piece: Piece, at: Arrangement, rate: Pace, work: Work) -> Iterator[Message]:
    form, turns, share = work.formats, rate.micro_batches, once(at.tp)
    cut = [one for one in (*piece.weights, *piece.borrowed) if one.cut_dim(at.tp) == 0]
    if not cut or not work.vocab:
        return
    if at.mesh.loss_parallel:
        numbers = 4 * rate.rows * tokens_of(at, work) * form.wide
        yield Message("numbers of the softmax", "all_reduce", "tp", 2 * share * numbers, turns)
        return
    whole = form.wide * sum(one.elements for one in cut)
    yield Message("head's matrix", "all_gather", "tp", share * whole, turns)
    yield Message("gradient of the head's matrix", "reduce_scatter", "tp", share * whole, turns)


def _context(bundles: Sequence[Bundle], at: Arrangement, rate: Pace, work: Work) -> Iterator[Message]:
    """Of each layer's attention, for each micro-batch.

    Ring: keys and values go on cp - 1 times, in the backward pass again, and their gradients, in the wide format, cp times, until they
    are home. Ulysses: queries, keys, values and the result are exchanged, and their gradients; key heads that are fewer than
    processes are repeated first. Gathering: keys and values once, their gradients summed back.
    """
    if at.cp == 1:
        return
    form, turns, share = work.formats, rate.micro_batches, once(at.cp)
    forwards = 2 if at.mesh.recompute else 1
    for (keys, queries, groups), layers in _attentions(bundles).items():
        tokens = rate.rows * tokens_of(at, work)
        here = max(1, groups // at.tp)  # key heads; fewer than processes are whole on each, which works with one
        kv, q = tokens * keys * here / groups, tokens * queries / at.tp
        steps = layers * turns
        if at.mesh.context_method is ContextMethod.ring:
            yield Message("keys and values", "send", "cp", kv * form.low, (at.cp - 1) * steps * (forwards + 1))
            yield Message("gradients of keys and values", "send", "cp", kv * form.wide, at.cp * steps)
        elif at.mesh.context_method is ContextMethod.ulysses:
            repeats = math.lcm(here, at.cp) // here
            exchanged = form.low * (kv * repeats + 2 * q)
            yield Message("heads", "all_to_all", "cp", share * exchanged, steps * (forwards + 1))
        else:
            yield Message("keys and values", "all_gather", "cp", (at.cp - 1) * kv * form.low, steps * forwards)
            yield Message("gradients of keys and values", "reduce_scatter", "cp", (at.cp - 1) * kv * form.low, steps)


def _attentions(bundles: Sequence[Bundle]) -> Counter[tuple[float, float, int]]:
    """How many layers there are of each (width of keys and values, of queries, number of key heads)."""
    found: Counter[tuple[float, float, int]] = Counter()
    for bundle in bundles:
        piece = bundle.piece
        if piece.keys and piece.tokens:
            found[piece.keys * piece.tokens, piece.queries * piece.tokens, piece.groups] += bundle.uses
    return found


def _experts(bundles: Sequence[Bundle], at: Arrangement, rate: Pace, work: Work) -> Iterator[Message]:
    """Visits there and back, forward and backward; balanced, so that each expert gets as many."""
    if at.ep == 1:
        return
    forwards = 2 if at.mesh.recompute else 1
    for bundle in bundles:
        if bundle.piece.visits:
            visits = rate.rows * tokens_of(at, work) * bundle.piece.visits * bundle.piece.width * work.formats.low
            count = 2 * bundle.uses * rate.micro_batches * (forwards + 1)
            yield Message("visits", "all_to_all", "ep", once(at.ep) * visits, count)


def _pipeline(bundles: Sequence[Bundle], process: int, at: Arrangement, rate: Pace, work: Work) -> Iterator[Message]:
    """The stream to the next stage, and its gradient back."""
    if at.pp == 1:
        return
    width = max((one.piece.width * one.piece.tokens for one in bundles if one.piece.where is Where.layer), default=0)
    cut = at.tp if at.sequence_parallel else 1
    stream = rate.rows * tokens_of(at, work) * width * work.formats.wide / cut
    last = at.pp * at.stages_per_process - 1
    mine = at.stages_of(process)
    onward = sum(stage != last and stage + 1 not in mine for stage in mine)
    back = sum(stage != 0 and stage - 1 not in mine for stage in mine)
    tied = borrowed(bundles) or tuple(one for one in work.lent if any(one in bundle.piece.weights for bundle in bundles))
    shared = sum(one.shard(at.tp, at.ep, at.shards) for one in tied) * work.formats.wide
    yield Message("gradients of tied weights", "all_reduce", "pp", 2 * once(2) * shared, 1)
    yield Message("stream", "send", "pp", stream, onward * rate.micro_batches, hidden=True)
    yield Message("gradients of the stream", "send", "pp", stream, back * rate.micro_batches, hidden=True)
