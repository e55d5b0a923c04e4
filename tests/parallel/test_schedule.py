"""Tables of pipelines: every piece of work once, no process waits for ever, and the order is the published one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.pipelining import schedules

from llmfactory.parallel.schedule import Action, Table, Work, forward_table, homes, stages_of, table, with_messages
from llmfactory.parallel.spec import Mesh, Schedule

TORCH = {
    Schedule.gpipe: schedules.ScheduleGPipe,
    Schedule.interleaved: schedules.ScheduleInterleaved1F1B,
    Schedule.zero_bubble: schedules.ScheduleInterleavedZeroBubble,
    Schedule.zero_bubble_v: schedules.ScheduleZBVZeroBubble,
}
SIZES = [
    (schedule, p, v, n)
    for schedule in Schedule
    for p in (2, 3, 4)
    for v in (1, 2, 3)
    for n in range(1, 3 * p + 2)
    if v == 1 or schedule in (Schedule.interleaved, Schedule.zero_bubble)
    if Mesh(pp=p, schedule=schedule, virtual_stages=v).fills_pipeline(n)
]
COMPUTING = {work.value: work for work in (Work.forward, Work.backward, Work.input, Work.weight)}
SENDS = {Work.send_forward: (Work.receive_forward, 1), Work.send_backward: (Work.receive_backward, -1)}


def test_torch_has_the_same_order() -> None:
    """Its 1F1B is left out: that class has a table for show only, and runs by other code."""
    for schedule, p, v, n in SIZES:
        if schedule not in TORCH:
            continue
        many = 2 if schedule is Schedule.zero_bubble_v else v
        stages = [
            SimpleNamespace(num_stages=p * many, group_size=p, group_rank=0, has_backward=True, submod=torch.nn.Identity())
            for _ in range(many)
        ]
        theirs = TORCH[schedule](stages[0] if schedule is Schedule.gpipe else stages, n).pipeline_order
        for rank, actions in enumerate(table(schedule, p, v, n)):
            ours = [(a.work.value, a.stage, a.micro) for a in actions if a.work.value in COMPUTING]
            want = [a for a in theirs[rank] if a is not None and a.computation_type.value in COMPUTING]
            assert ours == [(a.computation_type.value, a.stage_index, a.microbatch_index) for a in want], (schedule, p, v, n)


def play(actions: Table, home: list[int]) -> list[Action]:
    """Run a table where every message waits for its receiver; what is computed, in order. Nobody may be left waiting."""
    left = [list(one) for one in actions]
    done: list[Action] = []
    while any(left):
        moved = False
        for own in left:
            if own and own[0].work.value in COMPUTING:
                done.append(own.pop(0))
                moved = True
            elif own and own[0].work in SENDS:
                receive, step = SENDS[own[0].work]
                other = left[home[own[0].stage + step]]
                if other and other[0] == (receive, own[0].stage + step, own[0].micro):
                    own.pop(0), other.pop(0)
                    moved = True
        assert moved, [own[0] for own in left if own]
    return done


def test_all_work_is_done_once_after_what_it_needs() -> None:
    for schedule, p, v, n in SIZES:
        home = homes(schedule, p, v)
        seen: set[Action] = set()
        for action in play(table(schedule, p, v, n), home):
            work, stage, micro = action
            assert action not in seen
            needs = {
                Work.forward: [] if stage == 0 else [(Work.forward, stage - 1, micro)],
                Work.weight: [(Work.input, stage, micro)],
            }.get(work, [(Work.forward, stage, micro)])
            assert all(need in seen for need in needs), (schedule, p, v, n, action)
            if work in (Work.backward, Work.input) and stage < len(home) - 1:
                assert (work, stage + 1, micro) in seen
            seen.add(action)
        parts = (Work.input, Work.weight) if schedule.name.startswith("zero") else (Work.backward,)
        assert seen == {(work, s, m) for work in (Work.forward, *parts) for s in range(len(home)) for m in range(n)}


def test_evaluation_goes_forward_only() -> None:
    for schedule in Schedule:
        home = homes(schedule, 3, 2)
        want = {(Work.forward, stage, micro) for stage in range(len(home)) for micro in range(2)}
        assert set(play(forward_table(schedule, 3, 2, 2), home)) == want


def test_one_forward_one_backward_holds_few() -> None:
    """As many micro-batches as there are stages from this one to the last (Narayanan et al. 2021)."""
    for rank, actions in enumerate(table(Schedule.one_f_one_b, 4, 1, 12)):
        held, most = 0, 0
        for action in actions:
            held += {Work.forward: 1, Work.backward: -1}.get(action.work, 0)
            most = max(most, held)
        assert most == 4 - rank


def test_stages_lie_in_a_loop_or_in_a_v() -> None:
    assert [stages_of(rank, 3, 2, Schedule.interleaved) for rank in range(3)] == [[0, 3], [1, 4], [2, 5]]
    assert [stages_of(rank, 3, 2, Schedule.zero_bubble_v) for rank in range(3)] == [[0, 5], [1, 4], [2, 3]]
    assert homes(Schedule.zero_bubble_v, 2, 2) == [0, 1, 1, 0]


def test_an_impossible_order_is_found() -> None:
    with pytest.raises(ValueError, match="waits for another"):
        with_messages([[Action(Work.backward, 0, 0), Action(Work.forward, 0, 0)], [Action(Work.forward, 1, 0)]], [0, 1])


def test_when_a_pipeline_is_full() -> None:
    def counts(**keys: object) -> list[int]:
        return [n for n in range(1, 9) if Mesh(pp=3, **keys).fills_pipeline(n)]  # type: ignore[arg-type]

    assert counts(schedule=Schedule.one_f_one_b) == [3, 4, 5, 6, 7, 8]
    assert counts(schedule=Schedule.interleaved) == [3, 6]
    assert Mesh().fills_pipeline(1)
