"""The rows that the proofs run cover what they claim to."""

from __future__ import annotations

from itertools import combinations, product

from covering import Row, cover, pairs

FACTORS = {"a": ["1", "2", "3", "4"], "b": ["x", "y", "z"], "c": ["p", "q"], "d": ["m", "n"]}
ROWS: list[Row] = [dict(zip(FACTORS, values, strict=True)) for values in product(*FACTORS.values())]


def test_every_pair_stands_in_a_row() -> None:
    rows, impossible = cover(ROWS, lambda row: True)
    assert not impossible
    covered = {pair for row in rows for pair in pairs(row)}
    for one, other in combinations(FACTORS, 2):
        for a, b in product(FACTORS[one], FACTORS[other]):
            assert ((one, a), (other, b)) in covered
    assert len(rows) <= 14, "twelve rows are the least: four values times three"


def test_what_is_not_allowed_stands_in_no_row_and_is_told() -> None:
    rows, impossible = cover(ROWS, lambda row: not (row["a"] == "1" and row["c"] == "q") and row["b"] + row["d"] != "xm")
    assert set(impossible) == {(("a", "1"), ("c", "q")), (("b", "x"), ("d", "m"))}
    for row in rows:
        assert not set(impossible) & set(pairs(row))


def test_pairs_that_nobody_wants_cost_no_row() -> None:
    rows, _ = cover(ROWS, lambda row: True, lambda one, other: {one, other} == {"c", "d"})
    assert len(rows) == 4


def test_the_same_candidates_give_the_same_rows() -> None:
    assert cover(ROWS, lambda row: True) == cover(ROWS, lambda row: True)
