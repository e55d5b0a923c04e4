"""Accounts add up, in any order, and keep the same samples whoever met them first."""

from __future__ import annotations

import json
import random

from llmfactory.data.tally import EXCERPT, SAMPLES, Reason, Tally


def some(numbers: list[int]) -> Tally:
    tally = Tally()
    for number in numbers:
        step = tally.step(f"step {number % 2}")
        step.seen += 1
        step.seen_bytes += number
        step.dropped.setdefault(f"reason {number % 3}", Reason()).add(number, f"name {number}", "detail", "text" * 200)
        step.changes.setdefault("change", Reason()).add(number, f"name {number}", "", str(number), times=number)
        step.labels[str(number % 5)] = step.labels.get(str(number % 5), 0) + 1
        tally.length("read", number)
    return tally


def test_parts_in_any_order_make_the_whole() -> None:
    numbers, draw = list(range(200)), random.Random(0)
    whole = some(numbers).plain()
    for _ in range(5):
        draw.shuffle(numbers)
        total = Tally()
        total.step("step 0"), total.step("step 1")
        for start in range(0, 200, 37):
            total.merge(some(numbers[start : start + 37]))
        assert total.plain() == whole
    assert whole["steps"]["step 0"]["seen"] == 100
    assert whole["steps"]["step 1"]["changes"]["change"]["times"] == sum(range(1, 200, 2))
    reason = whole["steps"]["step 0"]["dropped"]["reason 0"]
    assert (reason["documents"], len(reason["samples"]), len(reason["samples"][0]["text"])) == (34, SAMPLES, EXCERPT)


def test_it_survives_json() -> None:
    tally = some(list(range(50)))
    assert Tally.of(json.loads(json.dumps(tally.plain()))).plain() == tally.plain()


def test_lengths_are_counted_by_powers_of_two() -> None:
    tally = Tally()
    for size in (0, 1, 2, 3, 4, 1023, 1024):
        tally.length("kept", size)
    assert tally.plain()["lengths"] == {"kept": {"1": 2, "2": 2, "4": 1, "512": 1, "1024": 1}}
