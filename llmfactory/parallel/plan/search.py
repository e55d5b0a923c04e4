"""The fastest layout that fits: which there are, and how to find the best without looking at all of them.

Which degrees can be is arithmetic; whether a job may run so, the rules say that composing asks too (`Legal`). Candidates are all

    pp x dp_replicate x dp_shard x cp x tp = processes,    tp within a machine,    ep within the data and context processes,

with ZeRO stage, sequence and loss parallelism, schedule, context method, recomputation, and the size of micro-batches unless it is
given. Weights are offloaded only where nothing fits otherwise.

The search goes through (pp, cp, tp, ep) in the order of a time that none of their layouts can be faster than: computation shared
out evenly, the messages that cannot be hidden, no idle time. It stops when that time is above the tenth best found so far. Within
them the same is done with what a schedule and a size of micro-batches add. Tests compare with looking at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from llmfactory.parallel.plan.accelerator import Machine
from llmfactory.parallel.plan.arrangement import arrange, bubble, pace
from llmfactory.parallel.plan.forecast import Forecast, forecast
from llmfactory.parallel.plan.memory import CATEGORIES
from llmfactory.parallel.plan.messages import messages
from llmfactory.parallel.plan.pieces import Bundle, Work, bundled
from llmfactory.parallel.plan.seconds import compute_seconds, message_seconds
from llmfactory.parallel.spec import ContextMethod, Mesh, Offload, Schedule, Zero

Legal = Callable[[Mesh, int], str | None]
"""Why a job may not run with a layout and a size of micro-batches; None: it may."""
TOP = 10
"""Layouts that are shown."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout, and the rows of a micro-batch that go with it."""

    mesh: Mesh
    micro_batch_size: int
    forecast: Forecast
    rejected: str | None = None
    """Why not; None: it can be used."""

    order: tuple[float, bool, float] = (0.0, False, 0.0)
    """Faster first; of two that are as fast, the one that computes less, then the one that needs less memory."""

    @property
    def seconds(self) -> float:
        return self.order[0]


@dataclass(frozen=True, slots=True)
class Split:
    """Degrees but those of data parallelism, which share what is left."""

    pp: int
    cp: int
    tp: int
    ep: int
    data: int


@dataclass(slots=True)
class Found:
    """What a search has seen."""

    best: dict[tuple[int, ...], Candidate] = field(default_factory=dict)
    """The best by (pp, cp, tp, ep)."""
    rejected: dict[tuple[int, ...], Candidate] = field(default_factory=dict)
    """The fastest that cannot be used, likewise."""
    looked_at: int = 0

    def add(self, one: Candidate) -> None:
        self.looked_at += 1
        places = self.best if one.rejected is None else self.rejected
        at = one.forecast.arrangement
        key = (at.pp, at.cp, at.tp, at.ep)
        if key not in places or one.order < places[key].order:
            places[key] = one

    @property
    def ranking(self) -> list[Candidate]:
        """The best of each split, best first."""
        return sorted(self.best.values(), key=lambda one: one.order)

    def limit(self, split: Split) -> float:
        """Seconds that a layout must stay below to be shown: those of the tenth best, and of the best of the same split."""
        known = self.best.get((split.pp, split.cp, split.tp, split.ep))
        tenth = sorted(one.seconds for one in self.best.values())[TOP - 1] if len(self.best) >= TOP else math.inf
        return tenth if known is None else min(tenth, known.seconds)

    @property
    def refused(self) -> list[Candidate]:
        """Faster than the best, but not to be used; fastest first."""
        best = min((one.seconds for one in self.best.values()), default=math.inf)
        found = sorted(self.rejected.values(), key=lambda one: one.order)
        return [one for one in found if one.seconds < best][:TOP]


@dataclass(frozen=True, slots=True)
class Question:
    """What a layout is looked for."""

    work: Work
    machine: Machine
    world: int
    base: Mesh
    """What the layouts take over: backend and time-out."""
    micro_batch_size: int | None = None
    """Given; None: it is chosen too."""
    experts: int = 0
    """Of a layer, where the model has any."""

    def candidate(self, mesh: Mesh, micro_batch_size: int, legal: Legal) -> Candidate:
        found = forecast(mesh, self.world, micro_batch_size, self.work, self.machine)
        order = (found.seconds, mesh.recompute, found.fullest.memory.total)
        return Candidate(mesh, micro_batch_size, found, _reason(found) or legal(mesh, micro_batch_size), order)


def _reason(found: Forecast) -> str | None:
    if found.fits:
        return None
    memory, gib = found.fullest.memory, 2**30
    largest = memory.largest
    return (
        f"needs {memory.total / gib:.1f} GiB of {found.memory_limit / gib:.1f}, "
        f"{getattr(memory, largest) / gib:.1f} of them for {CATEGORIES[largest]}"
    )


def divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def splits(question: Question) -> Iterator[Split]:
    """All that can be."""
    work, world = question.work, question.world
    for pp in divisors(world):
        if pp > max(1, work.layers):
            continue
        for cp in divisors(world // pp):
            if cp > 1 and work.seq_len % (2 * cp):
                continue
            for tp in divisors(world // pp // cp):
                if tp > question.machine.devices_per_node:
                    continue
                data = world // pp // cp // tp
                if data > work.rows:
                    continue
                for ep in divisors(data * cp) if question.experts else [1]:
                    if ep <= question.experts or ep == 1:
                        yield Split(pp, cp, tp, ep, data)


@dataclass(frozen=True, slots=True)
class Way:
    """What is chosen besides degrees and the size of micro-batches."""

    sequence_parallel: bool
    loss_parallel: bool
    context_method: ContextMethod
    schedule: Schedule
    recompute: bool


def ways(split: Split, question: Question) -> Iterator[Way]:
    """All that make a difference to a split."""
    layers = max(1, question.work.layers)
    for sequence in (False, True) if split.tp > 1 else (False,):
        for loss in (False, True) if split.tp > 1 else (False,):
            for method in ContextMethod if split.cp > 1 else (ContextMethod.ring,):
                for schedule in Schedule if split.pp > 1 else (Schedule.one_f_one_b,):
                    turns = replace(question.base, schedule=schedule).stages_per_process
                    if split.pp > 1 and split.pp * turns > layers:
                        continue
                    for recompute in (False, True):
                        yield Way(sequence, loss, method, schedule, recompute)


def layout(split: Split, way: Way, question: Question, offload: Offload) -> Mesh:
    """With all data-parallel processes sharing all that they can."""
    return replace(
        question.base,
        dp_replicate=1,
        dp_shard=split.data,
        cp=split.cp,
        tp=split.tp,
        pp=split.pp,
        ep=split.ep,
        zero=zeros(split.pp)[0],
        sequence_parallel=way.sequence_parallel,
        loss_parallel=way.loss_parallel,
        context_method=way.context_method,
        schedule=way.schedule,
        recompute=way.recompute,
        offload=offload,
    )


def fills(split: Split, way: Way, size: int, question: Question) -> bool:
    """Whether there are micro-batches enough for the schedule."""
    turns = pace(question.work.rows, split.data, size).micro_batches
    return replace(question.base, pp=split.pp, schedule=way.schedule).fills_pipeline(turns)


def micro_batch_sizes(split: Split, question: Question) -> list[int]:
    """The one that is given, or powers of two up to 16 and a process's whole share of the rows; ascending."""
    if question.micro_batch_size is not None:
        return [question.micro_batch_size]
    share = math.ceil(question.work.rows / split.data)
    return [*(size for size in (1, 2, 4, 8, 16) if size < share), share]


def shards_of(split: Split) -> Iterator[int]:
    """Degrees of `dp_shard`, the largest first."""
    for shard in reversed(divisors(split.data)):
        if split.ep == 1 or shard == 1 or (shard * split.cp) % split.ep == 0:
            yield shard


def zeros(pp: int) -> list[Zero]:
    return list(reversed(Zero)) if pp == 1 else [Zero.optimizer]


def _forms(mesh: Mesh, split: Split, shard: int) -> Iterator[Mesh]:
    """A layout with so many processes sharing; the lightest first. Pipelines gather weights once a step."""
    for zero in zeros(split.pp) if shard > 1 else zeros(split.pp)[:1]:
        yield replace(mesh, dp_replicate=split.data // shard, dp_shard=shard, zero=zero)


def every(question: Question, legal: Legal, offload: Offload = Offload.none) -> Found:
    """Look at all candidates."""
    found = Found()
    for split in splits(question):
        for way in ways(split, question):
            whole = layout(split, way, question, offload)
            for mesh in (form for shard in shards_of(split) for form in _forms(whole, split, shard)):
                for size in micro_batch_sizes(split, question):
                    if fills(split, way, size, question):
                        found.add(question.candidate(mesh, size, legal))
    return found


def search(question: Question, legal: Legal) -> Found:
    """The best of each of the ten best splits; with weights in the host's memory if nothing fits otherwise."""
    found = _search(question, legal, Offload.none)
    if found.best:
        return found
    offloaded = _search(question, legal, Offload.cpu)
    offloaded.looked_at += found.looked_at
    offloaded.rejected = {**found.rejected, **offloaded.rejected}
    return offloaded


def _search(question: Question, legal: Legal, offload: Offload) -> Found:
    found, bundles = Found(), bundled(question.work.pieces)
    chances = []
    for split in splits(question):
        bound = least(split, bundles, question)
        if not any(
            fills(split, way, size, question) for way in ways(split, question) for size in micro_batch_sizes(split, question)
        ):
            continue
        for recompute in (False, True):
            light = question.candidate(
                _lightest(split, recompute, question, offload), micro_batch_sizes(split, question)[0], legal
            )
            found.add(light)
            if light.forecast.fullest.memory.total <= MARGIN * light.forecast.memory_limit:
                chances.append((bound.compute + bound.waited + (bound.again if recompute else 0.0), recompute, bound, split))
    for seconds, recompute, bound, split in sorted(chances, key=lambda one: one[0]):
        if seconds >= found.limit(split):
            break
        sizes = micro_batch_sizes(split, question)
        # 1F1B is as fast as GPipe and holds fewer micro-batches.
        choices = [
            way
            for way in ways(split, question)
            if way.recompute == recompute
            and way.schedule is not Schedule.gpipe
            and any(fills(split, way, size, question) for size in sizes)
        ]
        ordered = sorted(
            ((min(bound.of(way, size, split, question) for size in sizes), way) for way in choices), key=lambda one: one[0]
        )
        for seconds, way in ordered:
            if seconds >= found.limit(split):
                break
            for size in sizes:
                if not fills(split, way, size, question) or bound.of(way, size, split, question) >= found.limit(split):
                    continue
                if (
                    not _look(question, legal, found, layout(split, way, question, offload), size, split)
                    and size != sizes[-2:][0]
                ):
                    break
    return found


MARGIN = 1.25
"""How much more than there is the lightest layout of a split may need before all of them are given up: stages that come out
unevenly make others a little lighter."""


def _lightest(split: Split, recompute: bool, question: Question, offload: Offload) -> Mesh:
    cut = split.tp > 1
    return layout(split, Way(cut, cut, ContextMethod.ring, Schedule.one_f_one_b, recompute), question, offload)


def _look(question: Question, legal: Legal, found: Found, mesh: Mesh, size: int, split: Split) -> bool:
    """At the data-parallel forms of a layout; whether any fits. Forms that share less need more memory, and are faster only by
    sending less: of weights and gradients, or over the tensor-parallel group, of copies' gradients, with each reduction."""
    lightest = None
    for shard in shards_of(split):
        for form in _forms(mesh, split, shard):
            one = question.candidate(form, size, legal)
            found.add(one)
            if not one.forecast.fits:
                if form.zero is zeros(split.pp)[0]:
                    return lightest is not None
                break
            lightest = lightest or one
            if lightest.rejected is None and not _waits_for_weights(lightest) and not _sums_copies(lightest):
                return True
        if lightest is not None and lightest.rejected is None and not _waits_for_weights(lightest):
            return True
    return True


def _waits_for_weights(one: Candidate) -> bool:
    groups = ("shards", "copies", "expert_shards", "expert_copies")
    return any(process.seconds.exposed.get(group) for process in one.forecast.processes for group in groups)


def _sums_copies(one: Candidate) -> bool:
    """Whether gradients of copies are summed more often than once a step."""
    return one.forecast.arrangement.tp > 1 and one.forecast.pace.micro_batches > 1


@dataclass(frozen=True, slots=True)
class Least:
    """Seconds that no layout of a split can stay below."""

    compute: float
    waited: float
    again: float
    """What recomputation adds."""

    @property
    def total(self) -> float:
        return self.compute + self.waited

    def of(self, way: Way, size: int, split: Split, question: Question) -> float:
        """The same of a schedule, a size of micro-batches and recomputation."""
        turns = pace(question.work.rows, split.data, size).micro_batches
        compute = self.compute + (self.again if way.recompute else 0.0)
        return (compute + self.waited) * (1 + bubble(split.pp, replace(question.base, schedule=way.schedule), turns))


def least(split: Split, bundles: tuple[Bundle, ...], question: Question) -> Least:
    """One micro-batch of all rows, all stages' work shared out evenly, each message by its cheapest option."""
    work, machine = question.work, question.machine
    rate = pace(work.rows, split.data, None)
    choices = [way for way in ways(split, question) if way.schedule is Schedule.one_f_one_b]
    computed, waited = {True: math.inf, False: math.inf}, math.inf
    for way in choices:
        at = arrange(layout(split, way, question, Offload.none), question.world)
        computed[way.recompute] = min(computed[way.recompute], compute_seconds(bundles, at, rate, work, machine))
        if not way.recompute:
            sent = messages(bundles, 0, at, rate, work)
            waited = min(waited, sum(message_seconds(one, at, machine) for one in sent if not one.hidden))
    again = max(0.0, computed[True] - computed[False])
    return Least(computed[False] / split.pp, waited / split.pp, again / split.pp)
