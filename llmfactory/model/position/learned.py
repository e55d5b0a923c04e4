"""One trained vector a position, added to the embedding (Radford et al. 2018).

There is no vector beyond the last position, and an index out of a table's range shows up late and badly (a crash of the
whole device on GPU). So the range is checked first: by value on CPU, by an asynchronous assertion on other devices, which
costs no synchronization. Compiled graphs carry no check of ours; their embedding kernel has its own bounds assertion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Normal, Parameter
from llmfactory.kernel.embedding import embedding
from llmfactory.model.frame import Frame
from llmfactory.model.position.part import Position, one_axis
from llmfactory.model.position.spec import Learned


class LearnedPosition(Position):
    """x + table[position + offset]."""

    def __init__(self, spec: Learned, frame: Frame) -> None:
        super().__init__()
        self.std, self.offset = frame.std, spec.offset
        self.limit = frame.max_positions
        self.weight = nn.Parameter(torch.zeros(frame.max_positions + spec.offset, frame.dim))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Normal(self.std))}

    def embed(self, x_BTD: Tensor, context: Context) -> Tensor:
        positions_BT = one_axis(context.positions)
        check_range(positions_BT, self.weight.shape[0] - self.offset)
        return x_BTD + embedding(positions_BT + self.offset, self.weight)


def check_range(positions: Tensor, rows: int) -> None:
    """Every position must have one of `rows` vectors. Raises UserError, on devices other than CPU their own assertion."""
    if torch.compiler.is_compiling() or positions.is_meta:
        return
    if positions.device.type != "cpu":
        inside = ((positions >= 0) & (positions < rows)).all()
        torch._assert_async(inside, f"a position lies outside the {rows} learned ones (model.max_positions={rows})")
        return
    low, high = (int(end) for end in positions.aminmax())
    if low < 0 or high >= rows:
        wrong = low if low < 0 else high
        raise UserError(
            f"position {wrong} lies outside the {rows} learned ones: "
            f"shorten the sequences or train with model.max_positions={max(high + 1, rows)}"
        )
