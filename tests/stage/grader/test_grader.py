"""Several graders at once: sums, and what becomes of graders that go wrong."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from llmfactory.core.errors import ConfigError, UserError
from llmfactory.stage.grader.exact_match import ExactMatchGrader
from llmfactory.stage.grader.grader import Answer, Grader, Graders, NoGrade, graded
from llmfactory.stage.grader.limit import OutOfTime, time_limit
from llmfactory.stage.grader.spec import ExactMatch, Length, Regex

Said = Callable[..., Answer]


class Given(Grader):
    """Grades by what stands in the record."""

    def __init__(self, at_once: int | None = 1) -> None:
        self.at_once = at_once  # type: ignore[misc]

    def grade(self, answers: Sequence[Answer]) -> list[Any]:
        found = []
        for answer in answers:
            wanted = answer.record["grade"]
            if wanted == "raise":
                raise ValueError("no")
            if wanted == "hang":
                while True:
                    pass
            if wanted == "swallow":
                while True:
                    try:
                        time.sleep(0.01)
                    except Exception:
                        found.append(0.0)
            found.append(wanted)
        return found if answers[0].record["grade"] != "few" else found[:-1]


def test_the_reward_is_the_weighted_sum(said: Said) -> None:
    specs = {"exact_match": ExactMatch(weight=2.0), "length": Length(most=10, soft=4, weight=0.5)}
    graders = Graders.of(specs, None, torch.device("cpu"), 100)  # type: ignore[arg-type]
    scored = graders.score([said("4", 8, answer="4"), said("5", 20, answer="4")])
    assert scored.rewards == [2.0 * 1.0 + 0.5 * -0.5, 2.0 * 0.0 + 0.5 * -1.0]
    assert scored.by_name == {"exact_match": [1.0, 0.0], "length": [-0.5, -1.0]}
    assert scored.failures == {}
    assert scored.means() == {"exact_match": 0.5, "length": -0.75}
    assert graders.score([]).rewards == []


@pytest.mark.parametrize(
    ("grade", "reason"),
    [
        ("raise", "raised ValueError"),
        (None, "gave none"),
        (math.nan, "gave a number that is not finite"),
        (-math.inf, "gave a number that is not finite"),
        ("words", "gave something that is no number"),
        ([1.0], "gave something that is no number"),
        ("few", "gave another number of grades than there are answers"),
        (NoGrade("asks for nothing"), "asks for nothing"),
    ],
)
def test_what_goes_wrong_is_counted_and_replaced(said: Said, grade: Any, reason: str) -> None:
    spec = ExactMatch(weight=3.0, failed_reward=-0.5)
    graders = Graders({"mine": spec, "also": ExactMatch()}, {"mine": Given(), "also": ExactMatchGrader(ExactMatch())})
    answers = [said("a", grade=1.0, answer="a"), said("a", grade=grade, answer="a"), said("b", grade=0.25, answer="a")]
    scored = graders.score(answers)
    assert scored.rewards == [3.0 + 1.0, 3.0 * -0.5 + 1.0, 0.75]
    assert scored.by_name["mine"] == [1.0, None, 0.25]
    assert scored.failures == {f"mine: {reason}": 1}
    graders.score(answers)
    assert graders.failures == {f"mine: {reason}": 2}


@pytest.mark.parametrize("grade", ["hang", "swallow"])
def test_a_grader_that_hangs_costs_the_one_answer(said: Said, grade: str) -> None:
    found = graded(Given(), [said("a", grade=1.0), said("a", grade=grade), said("a", grade=0.5)], 0.2)
    assert found == [1.0, NoGrade("took longer than 0.2 s an answer"), 0.5]


def test_one_that_looks_at_all_at_once_has_as_many_times_as_long(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr("llmfactory.stage.grader.grader.time_limit", lambda seconds: limits.append(seconds) or nullcontext())
    for at_once in (None, 1):
        assert graded(Given(at_once), [said("a", grade=float(number)) for number in range(3)], 2.0) == [0.0, 1.0, 2.0]
    assert limits == [6.0, 2.0, 2.0, 2.0]
    monkeypatch.undo()
    found = graded(Given(at_once=None), [said("a", grade=1.0), said("a", grade="raise")], 5.0)
    assert found == [NoGrade("raised ValueError")] * 2
    assert graded(Given(at_once=None), [], 5.0) == []


def test_a_regular_expression_without_end_is_interrupted(said: Said) -> None:
    spec = Regex(pattern="(a+)+$", seconds=0.3)
    graders = Graders.of({"regex": spec}, None, torch.device("cpu"), 10)  # type: ignore[arg-type]
    scored = graders.score([said("a" * 40 + "b"), said("aaa")])
    assert scored.by_name == {"regex": [None, 1.0]}


def test_a_timer_that_was_there_goes_on() -> None:
    fired = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: fired.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 50.0)
        with time_limit(10.0):
            pass
        left = signal.setitimer(signal.ITIMER_REAL, 0)[0]
        assert 40.0 < left <= 50.0
        signal.raise_signal(signal.SIGALRM)
        assert fired == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_elsewhere_than_in_the_main_thread_the_limit_is_told_afterwards() -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            with time_limit(0.01):
                time.sleep(0.05)
        except OutOfTime as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 1


def test_records_without_a_right_answer_are_found_before_anything_is_written() -> None:
    graders = Graders.of({"exact_match": ExactMatch()}, None, torch.device("cpu"), 10)  # type: ignore[arg-type]
    graders.check([{"answer": "x"}])
    with pytest.raises(
        UserError, match=r"field 'answer' of the prompt's record, and that of prompt 1 holds solution.*data.form.fields"
    ):
        graders.check([{"answer": "x"}, {"solution": "y"}])
    Graders.of({"length": Length()}, None, torch.device("cpu"), 10).check([{}])  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("weight", math.nan), ("failed_reward", math.inf), ("seconds", 0.0)])
def test_values_that_are_none_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        ExactMatch(**{name: value})
