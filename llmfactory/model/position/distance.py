"""Distances between queries and keys, for positions that bend the scores."""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.model.position.part import one_axis


def distances(context: Context) -> Tensor:
    """[B or 1, T, S] int64, position of the key minus that of the query; one row where all rows are seen to be alike."""
    positions_BT = _one_row(one_axis(context.positions))
    positions_BS = positions_BT if context.key_positions is None else _one_row(one_axis(context.key_positions))
    return positions_BS[:, None, :] - positions_BT[:, :, None]


def _one_row(positions_BT: Tensor) -> Tensor:
    """The first row, where the rows are views of it, or equal and to be compared without waiting for a device."""
    first = positions_BT[:1]
    if positions_BT.shape[0] == 1 or positions_BT.stride(0) == 0:
        return first
    if torch.compiler.is_compiling() or positions_BT.device.type != "cpu":
        return positions_BT
    return first if torch.equal(positions_BT, first.expand_as(positions_BT)) else positions_BT
