"""Rows cut along their length, without processes: a thread for each piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

Columns = list[int]


class ThreadPieces:
    """`core.context.Pieces` of one thread: `columns` of whole rows."""

    def __init__(self, rank: int, columns: Sequence[Columns], table: list[Tensor], barrier: Barrier) -> None:
        self.rank, self.columns, self.table, self.barrier = rank, columns, table, barrier

    def _all(self, x: Tensor) -> list[Tensor]:
        self.table[self.rank] = x
        self.barrier.wait(10)
        found = list(self.table)
        self.barrier.wait(10)
        return found

    def total(self, x: Tensor) -> Tensor:
        return torch.stack(self._all(x)).sum(0)

    def whole(self, x_BT: Tensor) -> Tensor:
        joined = torch.cat(self._all(x_BT), 1)
        return joined[:, torch.tensor([column for own in self.columns for column in own]).argsort()]

    def own(self, x_BT: Tensor) -> Tensor:
        return x_BT[:, self.columns[self.rank]]


@pytest.fixture
def in_pieces() -> Callable[[Sequence[Columns], Callable[[ThreadPieces], Any]], list[Any]]:
    """What a function of a thread's pieces gives in each thread."""

    def run(columns: Sequence[Columns], function: Callable[[ThreadPieces], Any]) -> list[Any]:
        table, barrier = [torch.empty(0)] * len(columns), Barrier(len(columns))
        pieces = [ThreadPieces(rank, columns, table, barrier) for rank in range(len(columns))]
        with ThreadPoolExecutor(len(columns)) as threads:
            return list(threads.map(function, pieces))

    return run
