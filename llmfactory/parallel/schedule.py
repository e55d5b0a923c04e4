"""In which order the stages of a pipeline work on micro-batches, and when they send: tables, made without torch.

Legend: p processes, v stages of each, n micro-batches. A stage's backward pass may be split in two: first the gradient of its
input, for which the stage before it waits, then those of its weights, for which nobody waits.

Stages lie in a loop (process r has r, r + p, r + 2p, ...) or, for ZB-V, in a V (r and 2p - 1 - r).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

from llmfactory.parallel.spec import Schedule


class Work(Enum):
    """What a process does at one place of its table."""

    forward = "F"
    backward = "B"
    input = "I"
    """The backward pass as far as the gradient of the stage's input."""
    weight = "W"
    """The rest of it."""
    send_forward = "send to the next stage"
    receive_forward = "receive from the stage before"
    send_backward = "send to the stage before"
    receive_backward = "receive from the next stage"


class Action(NamedTuple):
    """One entry of a table."""

    work: Work
    stage: int
    micro: int
    """Number of the micro-batch."""


Table = list[list[Action]]
"""By process."""


def stages_of(rank: int, p: int, v: int, schedule: Schedule) -> list[int]:
    """Numbers of the stages that a process works on, ascending."""
    if schedule is Schedule.zero_bubble_v:
        return [rank, 2 * p - 1 - rank]
    return [rank + p * loop for loop in range(v)]


def table(schedule: Schedule, p: int, v: int, n: int) -> Table:
    """What each process does, messages included. Sends and receives of any two processes come in the same order on both.

    Defined where `Mesh.fills_pipeline` says so.
    """
    return with_messages([list(_work(schedule, rank, p, v, n)) for rank in range(p)], homes(schedule, p, v))


def forward_table(schedule: Schedule, p: int, v: int, n: int) -> Table:
    """The same without backward passes, for evaluation: stage by stage in order."""
    own = [stages_of(rank, p, v, schedule) for rank in range(p)]
    work = [[Action(Work.forward, stage, micro) for stage in stages for micro in range(n)] for stages in own]
    return with_messages(work, homes(schedule, p, v))


def homes(schedule: Schedule, p: int, v: int) -> list[int]:
    """By stage, its process."""
    found = {stage: rank for rank in range(p) for stage in stages_of(rank, p, v, schedule)}
    return [found[stage] for stage in range(len(found))]


def _work(schedule: Schedule, rank: int, p: int, v: int, n: int) -> Iterator[Action]:
    if schedule is Schedule.gpipe:
        return _looped(rank, p, 1, n, warm_up=n, round_size=n)
    if schedule is Schedule.one_f_one_b:
        return _looped(rank, p, 1, n, warm_up=p - 1 - rank, round_size=n)
    if schedule is Schedule.interleaved:
        return _looped(rank, p, v, n, warm_up=(v - 1) * p + 2 * (p - 1 - rank), round_size=p)
    if schedule is Schedule.zero_bubble:
        return _looped(rank, p, v, n, warm_up=(v - 1) * p + p - 1 - rank, round_size=p, delay=rank)
    return iter([action for action in _v_shaped(rank, p, max(n, 2 * p - 1)) if action.micro < n])


def _looped(rank: int, p: int, v: int, n: int, *, warm_up: int, round_size: int, delay: int | None = None) -> Iterator[Action]:
    """Some forwards, then forward and backward in turn, then the backwards that are left (Narayanan et al. 2021b, figure 4).

    With several stages, `round_size` micro-batches pass through one before they pass through the next. `delay`: each backward
    is split, and the part of the weights comes so many backwards later (Qi et al. 2023, ZB-H1; ZB1P in torch).
    """
    rounds = [number // round_size % v for number in range(n * v)]
    forwards = list(_numbered(Work.forward, (rank + p * loop for loop in rounds)))
    ends = [rank + p * (v - 1 - loop) for loop in rounds]
    backwards = list(_numbered(Work.backward if delay is None else Work.input, ends))
    weights = list(_numbered(Work.weight, ends))
    yield from forwards[:warm_up]
    done = 0
    for number, backward in enumerate(backwards):
        yield from forwards[warm_up + number : warm_up + number + 1]
        yield backward
        if delay is not None and number >= delay:
            yield weights[done]
            done += 1
    if delay is not None:
        yield from weights[done:]


def _numbered(work: Work, stages: Iterable[int]) -> Iterator[Action]:
    """The micro-batches of each stage in their order."""
    seen: Counter[int] = Counter()
    for stage in stages:
        yield Action(work, stage, seen[stage])
        seen[stage] += 1


def _v_shaped(rank: int, p: int, n: int) -> Iterator[Action]:
    """ZB-V (Qi et al. 2023, section 6): no idle time where forward and both parts of the backward take equally long. n >= 2p - 1."""
    down, up = rank, 2 * p - 1 - rank
    seen: Counter[tuple[Work, int]] = Counter()

    def one(work: Work, stage: int) -> Action:
        seen[work, stage] += 1
        return Action(work, stage, seen[work, stage] - 1)

    for _ in range(2 * (p - rank) - 1):
        yield one(Work.forward, down)
    for _ in range(rank):
        yield one(Work.forward, up)
        yield one(Work.forward, down)
    for _ in range(p - rank):
        yield from (one(work, up) for work in (Work.forward, Work.input, Work.weight))
    while seen[Work.forward, up] < n:
        if seen[Work.forward, down] < n:
            yield one(Work.forward, down)
        yield from (one(work, down) for work in (Work.input, Work.weight))
        yield from (one(work, up) for work in (Work.forward, Work.input, Work.weight))
    for _ in range(rank):
        yield one(Work.input, down)
        yield one(Work.input, up)
    for _ in range(p - rank):
        yield one(Work.input, down)
        yield one(Work.weight, down)
    for stage in (up, down):
        while seen[Work.weight, stage] < n:
            yield one(Work.weight, stage)


def with_messages(work: Table, homes: list[int]) -> Table:
    """Put in who sends what when. Each message is put into both tables at the moment at which it is sent, in one common order:
    then no two processes wait for each other, even where a message waits for its receiver (as NCCL's do)."""
    found: Table = [[] for _ in work]
    left = [list(reversed(actions)) for actions in work]
    there: set[Action] = set()
    last = len(homes) - 1
    while any(left):
        stuck = True
        for rank, actions in enumerate(left):
            if not actions or not _ready(actions[-1], there, last):
                continue
            action = actions.pop()
            found[rank].append(action)
            there.add(action)
            message = _message(action, homes)
            if message is not None:
                sent, receiver, received = message
                found[rank].append(sent)
                found[receiver].append(received)
            stuck = False
        if stuck:
            raise ValueError(f"each process of this schedule waits for another: {[actions[-1] for actions in left if actions]}")
    return found


def _ready(action: Action, there: set[Action], last: int) -> bool:
    """Whether what an action needs has been computed."""
    work, stage, micro = action
    if work is Work.forward:
        return stage == 0 or Action(Work.forward, stage - 1, micro) in there
    if work is Work.weight:
        return Action(Work.input, stage, micro) in there
    if stage == last:
        return Action(Work.forward, stage, micro) in there
    return any(Action(kind, stage + 1, micro) in there for kind in (Work.backward, Work.input))


def _message(action: Action, homes: list[int]) -> tuple[Action, int, Action] | None:
    """(send, who receives, receive) that follow an action; None where the neighbour lies in the same process."""
    work, stage, micro = action
    if work is Work.weight:
        return None
    ahead = work is Work.forward
    target = stage + 1 if ahead else stage - 1
    if not 0 <= target < len(homes) or homes[target] == homes[stage]:
        return None
    send, receive = (Work.send_forward, Work.receive_forward) if ahead else (Work.send_backward, Work.receive_backward)
    return Action(send, stage, micro), homes[target], Action(receive, target, micro)
