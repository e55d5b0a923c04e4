"""Spherical interpolation of each tensor, as one vector (Shoemake 1985, section 3.3):

    theta = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b,   cos(w) = a b / (|a| |b|)

Where the two point in (nearly) one direction or in opposite ones there is no arc, or every one is as good: then it is a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmfactory.stage.method.method import Method
from llmfactory.stage.method.spec import Slerp

STRAIGHT = 1e-6
"""Sine of an angle below which vectors count as parallel."""


class SlerpMethod(Method):
    def __init__(self, spec: Slerp) -> None:
        self.t = spec.t

    def merged(self, name: str, base: Tensor, others: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        (other,) = others.values()
        a, b = base.double().flatten(), other.double().flatten()
        lengths = a.norm() * b.norm()
        angle = torch.arccos((a @ b / lengths).clamp(-1.0, 1.0)) if lengths > 0 else lengths
        if angle.sin() < STRAIGHT:
            return torch.lerp(base, other, self.t)
        mixed = (((1 - self.t) * angle).sin() * a + (self.t * angle).sin() * b) / angle.sin()
        return mixed.reshape(base.shape).to(base.dtype)
