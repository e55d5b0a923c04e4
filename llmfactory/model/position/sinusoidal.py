"""Fixed waves added to the embedding (Vaswani et al. 2017, section 3.5): coordinates 2i and 2i + 1 are the sine and the cosine
of position / theta^(2i/D).

Other programs put all sines before all cosines (`interleaved=false`), which is a fixed permutation of the coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.position.part import Position, one_axis
from llmfactory.model.position.scaling.part import plain
from llmfactory.model.position.spec import Sinusoidal


class SinusoidalPosition(Position):
    """x + waves(position)."""

    def __init__(self, spec: Sinusoidal) -> None:
        super().__init__()
        self.theta, self.interleaved = spec.theta, spec.interleaved

    def declare(self) -> dict[str, Parameter]:
        return {}

    def embed(self, x_BTD: Tensor, context: Context) -> Tensor:
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        waves_BTD = waves(one_axis(context.positions), x_BTD.shape[-1], self.theta, self.interleaved, wide)
        return (x_BTD + waves_BTD).to(x_BTD.dtype)


def waves(positions: Tensor, dim: int, theta: float, interleaved: bool, dtype: torch.dtype) -> Tensor:
    """[...] -> [..., dim]; of an odd width the last cosine is left out."""
    angle = positions[..., None].to(dtype) * plain(theta, dim, positions.device, dtype)
    both = torch.stack((angle.sin(), angle.cos()), -1 if interleaved else -2)
    return both.flatten(-2)[..., :dim]
