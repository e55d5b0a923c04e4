"""How long an optimizer step takes: computation, what is not hidden behind it, and the pipeline's idle time.

Computation is the time of matrix products at the speed that large ones reach, and the time in which the memory takes what is not
a product (norms, activations, sums: what the forward pass keeps is written once and read once, and so are the gradients). Then

    step = slowest stage x micro-batches x (1 + idle share) + what is left of the gradients' messages + optimizer.

Messages of tensor, context and expert parallelism are waited for. Those of FSDP go on while the devices compute, so what
counts is what they take longer. This is a model of an engine without flaws: it knows no stragglers and no memory in pieces; docs/planning.md has its numbers beside published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmfactory.parallel.plan.accelerator import Machine
from llmfactory.parallel.plan.arrangement import Arrangement, Pace, bubble
from llmfactory.parallel.plan.memory import held, kept_by, tokens_of
from llmfactory.parallel.plan.messages import Message
from llmfactory.parallel.plan.pieces import Bundle, Piece, Where, Work
from llmfactory.parallel.spec import Offload

TRAFFIC = 2.0
"""How often what the forward pass keeps goes through the memory, in each direction of the pass."""


LAUNCH = 1.5e-4
"""Seconds in which a process starts the kernels of one piece in one direction, about 30 of them at 5 microseconds: small pieces of
work take no less."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one step, of the slowest process."""

    compute: float
    """Matrix products and memory traffic."""
    exposed: dict[str, float]
    """Waiting for messages, by group."""
    idle: float
    """Waiting for other stages of the pipeline."""
    optimizer: float
    """The optimizer's pass over weights and state, and what offloading moves."""

    @property
    def total(self) -> float:
        return self.compute + sum(self.exposed.values()) + self.idle + self.optimizer


def seconds_of(
    bundles: Sequence[Bundle], sent: Sequence[Message], at: Arrangement, rate: Pace, work: Work, machine: Machine
) -> Seconds:
    """Of a process with these pieces, if all stages take as long as its own."""
    compute = rate.micro_batches * compute_seconds(bundles, at, rate, work, machine)
    waited: dict[str, float] = {}
    for one in sent:
        if not one.hidden:
            waited[one.group] = waited.get(one.group, 0.0) + message_seconds(one, at, machine)
    idle = bubble(at.pp, at.mesh, rate.micro_batches) * (compute + sum(waited.values()))
    for group, left in _left(sent, compute, at, machine).items():
        waited[group] = waited.get(group, 0.0) + left
    return Seconds(compute, waited, idle, _optimizer(bundles, at, rate, work, machine))


def message_seconds(one: Message, at: Arrangement, machine: Machine) -> float:
    """Of all messages of a kind."""
    group = at.group(one.group)
    return one.count * machine.seconds(one.operation, one.sent, group.size, group.per_node(machine.devices_per_node))


def compute_seconds(bundles: Sequence[Bundle], at: Arrangement, rate: Pace, work: Work, machine: Machine) -> float:
    """Of one micro-batch, forward and backward."""
    return sum(bundle.uses * _piece_seconds(bundle.piece, at, rate, work, machine) for bundle in bundles)


def _piece_seconds(piece: Piece, at: Arrangement, rate: Pace, work: Work, machine: Machine) -> float:
    tokens = rate.rows * tokens_of(at, work) * piece.tokens
    is_head = piece.where is Where.head
    cut = at.tp if not is_head or (at.mesh.loss_parallel and work.vocab % at.tp == 0) else 1
    pairs = piece.pair_products * piece.seen * work.seq_len / at.tp
    products = piece.cut_products / cut + piece.whole_products
    traffic = TRAFFIC * kept_by(piece, rate.rows, at, work)
    if is_head and work.vocab:
        traffic += tokens * work.vocab / cut * (2 * work.formats.wide + work.formats.low)
    passes = 4 if at.mesh.recompute and piece.where is Where.layer else 3
    moved = 3 if passes == 4 else 2
    flops = 2 * tokens * (passes * (products + pairs) - piece.frozen * products)
    seconds = flops / machine.flops[work.product_format] + moved * traffic / machine.memory_bandwidth
    return max(seconds, passes * LAUNCH) if tokens else 0.0


def _left(sent: Sequence[Message], compute: float, at: Arrangement, machine: Machine) -> dict[str, float]:
    """What messages beside the computation take longer than it, by group."""
    hidden: dict[str, float] = {}
    for one in sent:
        if one.hidden and one.group != "pp":
            hidden[one.group] = hidden.get(one.group, 0.0) + message_seconds(one, at, machine)
    total = sum(hidden.values())
    over = max(0.0, total - compute)
    left = {group: over * time / total for group, time in hidden.items()} if over else {}
    # A pipeline that is full sends beside its work; filling and emptying it shows each hop once.
    hops = [one for one in sent if one.group == "pp"]
    if hops:
        a_hop = sum(message_seconds(one, at, machine) / one.count for one in hops)
        left["pp"] = (at.pp - 1) * a_hop
    return left


def _optimizer(bundles: Sequence[Bundle], at: Arrangement, rate: Pace, work: Work, machine: Machine) -> float:
    """Weights, gradients and state are read, weights and state written."""
    count = held(bundles, at)
    own, state = count * work.formats.wide, count * work.weight_state
    moved = 3 * own + 2 * state
    if at.mesh.offload is Offload.none:
        return moved / machine.memory_bandwidth
    if at.mesh.offload is Offload.disk:
        return 2 * state / machine.host_bandwidth + moved / machine.memory_bandwidth
    # Weights come for each use, gradients go; the host's memory then does the optimizer's pass.
    uses = 2.0 * rate.micro_batches + rate.micro_batches
    return own * uses / machine.host_bandwidth + moved / machine.host_bandwidth
