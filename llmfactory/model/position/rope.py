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
from llmfactory.model.frame import Frame
from llmfactory.model.position.part import Position, one_axis
from llmfactory.model.position.spec import Rope


class RotaryPosition(Position):
    """Turns queries and keys, so that their product depends on the distance of their positions only."""

    def __init__(self, spec: Rope, frame: Frame) -> None:
        super().__init__()
        self.theta, self.scaling = spec.theta, spec.scaling.build()
        self.turn = turn_neighbors if spec.interleaved else turn_halves
        self.width = spec.rotated(frame.head_dim)
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
        return self._rotated(q_BHTD, cos, sin), self._rotated(k_BHTD, cos, sin)

    def _rotated(self, x_BHTD: Tensor, cos_B1TD: Tensor, sin_B1TD: Tensor) -> Tensor:
        if x_BHTD.shape[-1] == self.width:
            return self.turn(x_BHTD, cos_B1TD, sin_B1TD)
        turned = self.turn(x_BHTD[..., : self.width], cos_B1TD, sin_B1TD)
        return torch.cat((turned, x_BHTD[..., self.width :]), -1)


def turn_halves(x_BHTD: Tensor, cos_B1TD: Tensor, sin_B1TD: Tensor) -> Tensor:
    """Turn each pair by its angle: (x_i cos - x_j sin, x_j cos + x_i sin), the table of sines with these signs.

    Half precision is turned in float32 and cast back.
    """
    swapped_BHTD = x_BHTD.roll(x_BHTD.shape[-1] // 2, -1)
    return torch.addcmul(x_BHTD * cos_B1TD, swapped_BHTD, sin_B1TD).to(x_BHTD.dtype)


def turn_neighbors(x_BHTD: Tensor, cos_B1TD: Tensor, sin_B1TD: Tensor) -> Tensor:
    """The same where j = i + 1."""
    swapped_BHTD = x_BHTD.reshape(*x_BHTD.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return torch.addcmul(x_BHTD * cos_B1TD, swapped_BHTD, sin_B1TD).to(x_BHTD.dtype)


def repeat_halves(first: Tensor, second: Tensor) -> Tensor:
    """[..., D/2] twice -> [..., D], the values of each pair where `turn_halves` looks for them."""
    return torch.cat((first, second), -1)


def repeat_neighbors(first: Tensor, second: Tensor) -> Tensor:
    """The same for `turn_neighbors`."""
    return torch.stack((first, second), -1).flatten(-2)
