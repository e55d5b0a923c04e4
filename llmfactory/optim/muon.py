"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").

    M = b M + (1 - b) G,   U = orthogonal((1 - b) G + b M),   w = w - lr s U - lr decay w

The orthogonal factor of U S V' is U V'. Five iterations X = a X + (b A + c A^2) X, A = X X', with a polynomial that is steep at zero
take all singular values to somewhere between 0.7 and 1.2, which serves as well (section "Design").

An iteration mixes all entries of a matrix, so the processes that hold its pieces put it together first, and each keeps its piece of
what comes out. A stack of matrices [..., n, m] is iterated matrix by matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmfactory.optim.adamw import adamw_step
from llmfactory.optim.groups import MATRIX
from llmfactory.optim.optimizer import StepOptimizer
from llmfactory.optim.spec import Muon as MuonSpec
from llmfactory.optim.spec import Scale
from llmfactory.parallel.weights import box, cut, local, whole

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""a, b and c."""
SMALLEST = 1e-7
"""Least norm that is divided by."""


class Muon(StepOptimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: MuonSpec) -> None:
        super().__init__(groups, spec)
        self.spec = spec

    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        if group[MATRIX]:
            for weight in weights:
                self._orthogonal_step(weight, group["lr"], group["weight_decay"])
        else:
            lr = self.spec.rest_factor * group["lr"]
            adamw_step(self.state, weights, self.spec, lr=lr, decay=group["weight_decay"])

    def _orthogonal_step(self, weight: Tensor, lr: float, decay: float) -> None:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if not state:
            state["mean"] = torch.zeros_like(weight)
        mean = state["mean"].lerp_(gradient, 1 - self.spec.momentum)
        update = gradient.lerp(mean, self.spec.momentum) if self.spec.nesterov else mean
        found = cut(orthogonal(whole(update), self.spec.iterations), box(weight))
        local(weight).mul_(1 - lr * decay).add_(found.to(weight.dtype), alpha=-lr * scale_of(weight, self.spec.scale))


def orthogonal(matrix: Tensor, iterations: int) -> Tensor:
    """[..., n, m] -> the same with singular values near one, in float32 at least."""
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(SMALLEST)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    found: Tensor = x.mT if tall else x
    return found


def scale_of(weight: Tensor, scale: Scale) -> float:
    """Length of an update, by the shape of the whole matrix."""
    n, m = weight.shape[-2:]
    return float(max(1.0, n / m) ** 0.5) if scale is Scale.spectral else float(0.2 * max(n, m) ** 0.5)
