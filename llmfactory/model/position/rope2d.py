"""Rotary positions on two axes (Du et al. 2022, GLM, section 2.1; Zeng et al. 2023, in the form of ChatGLM-6B).

The first half of a head turns by a token's place in the text, in which a blank is one place, the second half by its place
within the blank (0 outside blanks). Each half is rotated by itself, see `rope.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.kernel.rotary import turn
from llmfactory.model.frame import Frame
from llmfactory.model.position.part import Position, two_axes
from llmfactory.model.position.rope import repeat_halves
from llmfactory.model.position.scaling.part import plain
from llmfactory.model.position.spec import Rope2d


class TwoAxesRotaryPosition(Position):
    """Positions [B, 2, T]; [B, T] means that there are no blanks."""

    def __init__(self, spec: Rope2d, frame: Frame) -> None:
        super().__init__()
        self.theta, self.width = spec.theta, frame.head_dim // 2

    def declare(self) -> dict[str, Parameter]:
        return {}

    def prepare(self, context: Context, dtype: torch.dtype) -> Context:
        wide = torch.promote_types(dtype, torch.float32)
        positions_B2T = two_axes(context.positions)
        frequency_D = plain(self.theta, self.width, positions_B2T.device, wide)
        angle_B1T2D = positions_B2T.transpose(1, 2)[:, None, :, :, None].to(wide) * frequency_D
        cos, sin = angle_B1T2D.cos(), angle_B1T2D.sin()
        return context.with_(rotary=(repeat_halves(cos, cos).flatten(-2), repeat_halves(-sin, sin).flatten(-2)))

    def rotate(self, q_BHTD: Tensor, k_BHTD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.rotary is not None, "prepare comes first"
        cos, sin = context.rotary
        return turn(q_BHTD, cos, sin, self.width, self.kernel), turn(k_BHTD, cos, sin, self.width, self.kernel)
