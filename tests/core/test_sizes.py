"""Rows of steps against a list of them."""

from __future__ import annotations

import pytest

from llmfactory.core.sizes import Sizes


def test_equals_a_list() -> None:
    sizes = Sizes([(0, 2), (3, 5), (4, 7)])
    rows = [2, 2, 2, 5, *[7] * 6]
    assert [sizes.rows(step) for step in range(10)] == rows
    assert [sizes.before(step) for step in range(11)] == [sum(rows[:step]) for step in range(11)]
    assert [sizes.alike(step) for step in range(6)] == [3, 2, 1, 1, None, None]
    assert (sizes.varies, sizes.least) == (True, 2)
    constant = Sizes([(0, 4)])
    assert (constant.rows(9), constant.before(9), constant.alike(9), constant.varies) == (4, 36, None, False)


@pytest.mark.parametrize("pieces", [[], [(1, 2)], [(0, 2), (3, 4), (3, 5)]])
def test_pieces_begin_and_ascend(pieces: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Sizes(pieces)
