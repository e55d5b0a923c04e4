"""Rotary positions (Su et al. 2021, equation 34): coordinate pair i of a head turns by the angle position / theta^(2i/D).

The pair of i is (x_i, x_{i + D/2}), the two halves of a head, as in the published LLaMA weights of the Hugging Face format;
the paper pairs neighbors (`interleaved`), which is the same up to a fixed permutation of the rows of the q and k matrices.
D is the rotated width: `share` of the head, its first coordinates; the others stay.

Tables are computed from the positions once a forward and shared by the layers. Nothing is stored, so that there is no
buffer to get lost on the meta device and no longest position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.kernel.rotary import turn
from llmfactory.model.frame import Frame
from llmfactory.model.position.part import Position, one_axis
from llmfactory.model.position.spec import Rope


class RotaryPosition(Position):
    """Turns queries and keys, so that their product depends on the distance of their positions only."""

    def __init__(self, spec: Rope, frame: Frame) -> None:
        super().__init__()
        self.theta, self.scaling = spec.theta, spec.scaling.build()
        width = spec.rotated(frame.head_dim)
        self.width, self.group = width, 2 if spec.interleaved else width
        self.repeat = repeat_neighbors if spec.interleaved else repeat_halves

    def declare(self) -> dict[str, Parameter]:
        return {}

    def prepare(self, context: Context, dtype: torch.dtype) -> Context:
        wide = torch.promote_types(dtype, torch.float32)
        positions_BT = one_axis(context.positions)
        row_BS = positions_BT if context.key_positions is None else one_axis(context.key_positions)
        frequency_D = self.scaling.frequencies(self.theta, self.width, row_BS, wide)
        angle_B1TD = positions_BT[:, None, :, None].to(wide) * frequency_D
        cos, sin = angle_B1TD.cos() * self.scaling.factor, angle_B1TD.sin() * self.scaling.factor
        return context.with_(rotary=(self.repeat(cos, cos), self.repeat(-sin, sin)))

    def rotate(self, q_BHTD: Tensor, k_BHTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.rotary is not None, "prepare comes first"
        cos, sin = context.rotary
        return turn(q_BHTD, cos, sin, self.group, self.kernel), turn(k_BHTD, cos, sin, self.group, self.kernel)


def repeat_halves(first: Tensor, second: Tensor) -> Tensor:
    """[..., D/2] twice -> [..., D], the values of each pair where its coordinates stand: half a head apart."""
    return torch.cat((first, second), -1)


def repeat_neighbors(first: Tensor, second: Tensor) -> Tensor:
    """The same where they stand side by side."""
    return torch.stack((first, second), -1).flatten(-2)
