"""Where processes stand, in words."""

from __future__ import annotations

import sys
import time

from llmfactory.launch.standing import (
    Standing,
    from_text,
    main_seconds,
    name_of,
    pending,
    picture,
    place_of,
    ranks,
    waiting_call,
)


def entry(number: int, retired: bool, state: str = "scheduled") -> dict:
    return {
        "collective_seq_id": number,
        "profiling_name": "gloo:all_reduce",
        "process_group": ["1", "tensor"],
        "input_sizes": [[2, 3]],
        "input_dtypes": ["Float"],
        "retired": retired,
        "state": state,
    }


def test_the_oldest_collective_that_has_not_ended_unless_the_process_goes_on():
    assert pending([]) is None
    assert pending([entry(1, True)]) is None
    assert pending([entry(1, True), entry(2, False), entry(3, False)])["collective_seq_id"] == 2
    assert pending([entry(1, False), entry(2, True)]) is None
    assert pending([entry(1, False), entry(2, False, "completed")]) is None
    assert name_of(entry(7, False)) == "all_reduce (number 7 of the group tensor: float [2, 3])"


def test_ranks_that_stand_together_are_one_line():
    assert ranks([3]) == "rank 3"
    assert ranks([5, 0, 1, 2, 7, 8]) == "ranks 0-2, 5, 7-8"
    waits = [Standing(rank, "all_reduce", "clip.py:3 (norm)") for rank in (0, 1, 3)]
    text = picture([*waits, Standing(2, None, "prepare.py:9 (read)")], 6)
    assert text.splitlines() == [
        "  ranks 0-1, 3 waits in all_reduce, clip.py:3 (norm)",
        "  rank 2 does not wait for anybody: it is in prepare.py:9 (read)",
        "  ranks 4-5 gave no sign of life",
    ]
    assert from_text(waits[0].as_text()) == waits[0]


class Work:
    def wait(self) -> str:
        return waiting_call([sys._getframe(1)])


def test_a_call_that_waits_is_known_by_its_line():
    assert Work().wait() == "wait"
    assert waiting_call([sys._getframe()]) is None
    assert place_of([sys._getframe()]).endswith("(test_a_call_that_waits_is_known_by_its_line)")


def test_the_main_thread_s_time_stands_still_in_a_wait():
    began = main_seconds()
    time.sleep(0.05)
    slept = main_seconds()
    sum(range(10**6))
    assert slept - began < main_seconds() - slept
