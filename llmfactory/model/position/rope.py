"""Rotary positions (Su et al. 2021, equation 34): coordinate pair i of a head turns by the angle position / theta^(2i/D).

The pair of i is (x_i, x_{i + D/2}), the two halves of a head, as in the published LLaMA weights of the Hugging Face format;
the paper pairs neighbours, which is the same up to a fixed permutation of the rows of the q and k matrices.

Tables are computed from the positions once a forward and shared by the layers. Nothing is stored, so that there is no
buffer to get lost on the meta device and no longest position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Frame
from llmfactory.model.position.part import Position
from llmfactory.model.position.spec import Rope


class RotaryPosition(Position):
    """Turns queries and keys, so that their product depends on the distance of their positions only."""

    def __init__(self, spec: Rope, frame: Frame) -> None:
        super().__init__()
        self.theta, self.head_dim = spec.theta, frame.head_dim

    def declare(self) -> dict[str, Parameter]:
        return {}

    def prepare(self, context: Context, dtype: torch.dtype) -> Context:
        wide = torch.promote_types(dtype, torch.float32)
        exponent = torch.arange(0, self.head_dim, 2, device=context.positions.device, dtype=wide) / self.head_dim
        angle_B1TD = context.positions[:, None, :, None].to(wide) / self.theta**exponent
        cos, sin = angle_B1TD.cos(), angle_B1TD.sin()
        return context.with_(rotary=(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))

    def rotate(self, q_BHTD: Tensor, k_BHTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.rotary is not None, "prepare comes first"
        cos, sin = context.rotary
        return turn(q_BHTD, cos, sin), turn(k_BHTD, cos, sin)


def turn(x_BHTD: Tensor, cos_B1TD: Tensor, sin_B1TD: Tensor) -> Tensor:
    """Turn each pair by its angle: (x_i cos - x_j sin, x_j cos + x_i sin), the table of sines with these signs.

    Half precision is turned in float32 and cast back.
    """
    swapped_BHTD = x_BHTD.roll(x_BHTD.shape[-1] // 2, -1)
    return torch.addcmul(x_BHTD * cos_B1TD, swapped_BHTD, sin_B1TD).to(x_BHTD.dtype)
