"""Bytes that a process holds at the height of an optimizer step, by category.

- parameters, gradients, optimizer: what it keeps of each (`Weight.shard`), exactly.
- activations: what forward passes keep for the backward passes of the micro-batches under way (`kept.py`).
- buffers: whole weights while FSDP has them gathered, whole gradients before they are reduced. FSDP2 has a whole copy also where
  nothing is cut. ZeRO-3 gathers the next block while one is used; ZeRO-1 and ZeRO-2 keep all weights whole for the step; ZeRO-1
  adds up whole gradients when there are several micro-batches.
- logits: those of a chunk of tokens with their gradient, and the gradient of the head's matrix, which the loss makes at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from llmfactory.parallel.plan.arrangement import Arrangement, Pace, in_flight
from llmfactory.parallel.plan.pieces import Bundle, Piece, Weight, Where, Work, borrowed
from llmfactory.parallel.spec import Offload, Zero

CATEGORIES = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "buffers": "communication buffers",
    "logits": "logits",
}
"""Fields of `Memory`, and what to call them."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float
    logits: float
    host: float = 0.0
    """In the host's memory, or on disk: what is offloaded."""

    @property
    def total(self) -> float:
        """On the device."""
        return float(sum(getattr(self, name) for name in CATEGORIES))

    @property
    def largest(self) -> str:
        """The category that takes most."""
        return max(CATEGORIES, key=lambda name: float(getattr(self, name)))

    def plain(self) -> dict[str, float]:
        return {one.name: float(getattr(self, one.name)) for one in fields(Memory)}


def kept_of(weights: Sequence[Weight], at: Arrangement, place: int = 0) -> int:
    """Elements of these weights that a process keeps between steps. `place`: its place among those that share them."""
    total = 0
    for one in weights:
        if one.is_expert:
            total += one.shard(at.tp, at.ep, at.expert_shards, place // at.ep if at.shards > 1 else 0)
        else:
            total += one.shard(at.tp, 1, at.shards, place)
    return total


def held(bundles: Sequence[Bundle], at: Arrangement, place: int = 0, trained: bool = False) -> int:
    """The same of a stage's pieces; `trained`: of those weights only that are trained."""

    def chosen(weights: Sequence[Weight]) -> list[Weight]:
        return [one for one in weights if one.trains or not trained]

    own = sum(bundle.owned * kept_of(chosen(bundle.piece.weights), at, place) for bundle in bundles)
    return own + kept_of(chosen(borrowed(bundles)), at, place)


def whole(weights: Sequence[Weight], at: Arrangement) -> int:
    """Elements that a process sees of these weights while they are used."""
    return sum(math.prod(one.local(at.tp, at.ep)) for one in weights)


def tokens_of(at: Arrangement, work: Work) -> float:
    """Tokens of a row that a process has."""
    return work.seq_len / at.cp


def kept_by(piece: Piece, rows: float, at: Arrangement, work: Work) -> float:
    """Bytes that a piece's forward pass keeps of one micro-batch."""
    queries, keys = piece.tokens * tokens_of(at, work), work.seq_len  # of two streams, one has keys
    stream_cut = at.tp if at.sequence_parallel and piece.where is Where.layer else 1
    return piece.kept.total(rows, queries, keys, stream_cut, at.tp)


def copies_of(bundles: Sequence[Bundle], at: Arrangement, work: Work) -> float:
    """Bytes of the low-precision copies of weights, which autocast makes once a micro-batch."""
    if not work.formats.mixed:
        return 0.0
    return float(work.formats.low * sum(bundle.owned * bundle.piece.casts(at.tp, at.ep) for bundle in bundles))


def input_of(piece: Piece, rows: float, at: Arrangement, work: Work) -> float:
    """Bytes of the input of a layer, which is what recomputation keeps of it."""
    cut = at.tp if at.sequence_parallel else 1
    return rows * piece.tokens * tokens_of(at, work) * piece.width * work.formats.wide / cut


def memory_of(bundles: Sequence[Bundle], process: int, at: Arrangement, rate: Pace, work: Work, place: int = 0) -> Memory:
    """Of process number `process` of a pipeline, which has these pieces."""
    form = work.formats
    trained = held(bundles, at, place, trained=True)
    parameters: float = held(bundles, at, place) * form.wide
    gradients: float = trained * form.wide
    count = sum(bundle.owned * sum(one.trains for one in bundle.piece.weights) for bundle in bundles) + len(borrowed(bundles))
    state: float = trained * work.weight_state + work.state_bytes * count
    under_way = in_flight(process, at.pp, at.mesh, rate.micro_batches)
    activations = _activations(bundles, under_way, at, rate, work)
    buffers = _buffers(bundles, at, rate, work)
    logits = _logits(bundles, at, rate, work)
    host = 0.0
    if at.mesh.offload is Offload.cpu:
        host, parameters, gradients, state = parameters + gradients + state, 0.0, 0.0, 0.0
    elif at.mesh.offload is Offload.disk:
        host, state = state, 0.0
    return Memory(parameters, gradients, state, activations, buffers, logits, host)


def is_layer(bundle: Bundle) -> bool:
    return bundle.piece.where is Where.layer


def _activations(bundles: Sequence[Bundle], under_way: float, at: Arrangement, rate: Pace, work: Work) -> float:
    layers = [bundle for bundle in bundles if is_layer(bundle)]
    others = sum(bundle.uses * kept_by(bundle.piece, rate.rows, at, work) for bundle in bundles if not is_layer(bundle))
    kept = sum(bundle.uses * kept_by(bundle.piece, rate.rows, at, work) for bundle in layers)
    if not at.mesh.recompute or at.mesh.recompute_keep:  # what chosen operations keep is not forecast: at most this
        return under_way * (others + kept + copies_of(layers, at, work))
    inputs = sum(bundle.uses * input_of(bundle.piece, rate.rows, at, work) for bundle in layers)
    share = 1 / at.mesh.recompute_every
    blocks = inputs * share + (kept + copies_of(layers, at, work)) * (1 - share)
    if at.mesh.recompute_budget_mb is not None:
        blocks = min(kept, max(inputs, 1e6 * at.mesh.recompute_budget_mb))
    again = [kept_by(bundle.piece, rate.rows, at, work) + bundle.piece.casts(at.tp, at.ep) * form_low(work) for bundle in layers]
    return under_way * (others + blocks) + max(again, default=0.0)


def form_low(work: Work) -> int:
    """Bytes of each element of a weight's low-precision copy; 0: there is none."""
    return work.formats.low if work.formats.mixed else 0


def _buffers(bundles: Sequence[Bundle], at: Arrangement, rate: Pace, work: Work) -> float:
    if at.world == 1:
        return 0.0
    layers = [(whole(bundle.piece.weights, at), bundle.owned) for bundle in bundles if is_layer(bundle)]
    layer = max((size for size, _ in layers), default=0)
    rest = sum(whole(bundle.piece.weights, at) for bundle in bundles if not is_layer(bundle)) + whole(borrowed(bundles), at)
    everything = rest + sum(size * count for size, count in layers)
    if at.shards > 1 and at.mesh.zero is Zero.parameters:
        gathered = min(everything, rest + 2 * layer)
    else:
        gathered = everything
    adds_up = rate.micro_batches > 1 and (at.mesh.zero is Zero.optimizer or at.shards == 1)
    unreduced = everything if adds_up else min(everything, 2 * layer)
    sent = 0.0
    if at.pp > 1:  # what comes from both neighbours and goes to them
        sent = 2 * max((input_of(bundle.piece, rate.rows, at, work) for bundle in bundles if is_layer(bundle)), default=0.0)
    return (gathered + unreduced) * work.formats.wide + sent


def _logits(bundles: Sequence[Bundle], at: Arrangement, rate: Pace, work: Work) -> float:
    head = next((bundle.piece for bundle in bundles if bundle.piece.where is Where.head), None)
    if head is None or not work.vocab:
        return 0.0
    form = work.formats
    cut = at.tp if at.mesh.loss_parallel and work.vocab % at.tp == 0 else 1
    columns = work.vocab / cut
    tokens = rate.rows * tokens_of(at, work)
    made = min(tokens, work.chunk_rows) * columns * (form.wide + form.low)
    matrix = columns * head.width * form.wide
    if at.tp > 1 and cut == 1 and work.vocab % at.tp == 0:
        made += work.vocab * head.width * form.wide  # all rows of the matrix, gathered
    return made + at.losses_in_flight(rate.micro_batches) * (matrix + tokens * head.width * form.low)
