"""Trained vectors on two axes, added to the embedding (Du et al. 2022, GLM, section 2.1): one for a token's place in the text,
in which a blank is one place, and one for its place within the blank (0 outside blanks).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Normal, Parameter
from llmfactory.kernel.embedding import embedding
from llmfactory.model.frame import Frame
from llmfactory.model.position.learned import check_range
from llmfactory.model.position.part import Position, two_axes


class TwoAxesLearnedPosition(Position):
    """x + text[position] + blank[position in the blank]. Positions [B, 2, T]; [B, T] means that there are no blanks."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.std = frame.std
        self.limit = frame.max_positions
        self.text = nn.Parameter(torch.zeros(frame.max_positions, frame.dim))
        self.blank = nn.Parameter(torch.zeros(frame.max_positions, frame.dim))

    def declare(self) -> dict[str, Parameter]:
        return {name: Parameter(Normal(self.std)) for name in ("text", "blank")}

    def embed(self, x_BTD: Tensor, context: Context) -> Tensor:
        positions_B2T = two_axes(context.positions)
        check_range(positions_B2T, self.text.shape[0])
        text_BT, blank_BT = positions_B2T.unbind(1)
        return x_BTD + embedding(text_BT, self.text) + embedding(blank_BT, self.blank)
