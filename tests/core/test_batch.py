from __future__ import annotations

import pytest
import torch

from llmfactory.core.batch import rows, split


@pytest.mark.parametrize(("size", "sizes"), [(None, [7]), (7, [7]), (9, [7]), (3, [3, 3, 1]), (1, [1] * 7)])
def test_split_keeps_rows_and_order_of_every_field(size: int | None, sizes: list[int]) -> None:
    batch = {"tokens": torch.arange(14).view(7, 2), "weights": torch.arange(7.0)}
    pieces = list(split(batch, size))
    assert [rows(piece) for piece in pieces] == sizes
    for name, field in batch.items():
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), field)
