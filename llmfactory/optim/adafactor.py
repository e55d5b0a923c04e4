"""Adafactor (Shazeer and Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost", algorithms 4 and 5).

For a matrix G [n, m], b_t = 1 - t^-0.8, with R [n] and C [m] the running means of the rows and columns of G^2 + eps:

    V = R C' / mean(R),   U = G / sqrt(V),   U = U / max(1, rms(U) / d),   w = w - lr max(eps_2, rms(w)) U

Vectors keep V itself. In a stack of matrices [..., n, m] each has its own R and C, and all of it one rms, as it is one tensor.

R and C are small, and whole on every process, wherever the pieces of the matrix lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmfactory.optim.optimizer import StepOptimizer
from llmfactory.optim.spec import Adafactor as AdafactorSpec
from llmfactory.parallel.clip import norms, sums_along, without
from llmfactory.parallel.weights import box, cut, local


class Adafactor(StepOptimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: AdafactorSpec) -> None:
        super().__init__(groups, spec)
        self.spec = spec

    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        updates = [self._direction(weight) for weight in weights]
        lengths = self._rms(weights, updates)
        for update, length in zip(updates, lengths, strict=True):
            update.div_((length / self.spec.update_clip).clamp_min(1.0))
        scales = self._rms(weights, weights).clamp_min(self.spec.least_scale) if self.spec.scale_by_weights else None
        for number, (weight, update) in enumerate(zip(weights, updates, strict=True)):
            update.mul_(group["lr"] if scales is None else group["lr"] * scales[number])
            if self.spec.momentum is not None:
                mean = local(self.state[weight]["mean"])
                update = mean.lerp_(update, 1 - self.spec.momentum)
            local(weight).mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)

    def _rms(self, weights: list[Tensor], values: list[Tensor]) -> Tensor:
        """[N], root mean squares of whole tensors, given their pieces."""
        found = norms([_like(weight, value) for weight, value in zip(weights, values, strict=True)])
        return found / found.new_tensor([math.sqrt(weight.numel()) for weight in weights])

    def _direction(self, weight: Tensor) -> Tensor:
        """G / sqrt(V), this process's piece."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        piece = local(gradient)
        if not state:
            self._begin(state, weight)
        state["step"] += 1
        keep = 1 - state["step"].item() ** -self.spec.decay_power
        square = piece.square().add_(self.spec.eps)
        if weight.dim() < 2:
            local(state["square"]).mul_(keep).add_(square, alpha=1 - keep)
            return piece / local(state["square"]).sqrt()
        n, m = weight.shape[-2:]
        for name in ("rows", "columns"):
            state[name] = state[name].to(piece.device)  # a checkpoint gives back on the host what is not cut
        state["rows"].lerp_(sums_along(square, weight, -1) / m, 1 - keep)
        state["columns"].lerp_(sums_along(square, weight, -2) / n, 1 - keep)
        offsets, sizes = box(weight)
        rows, columns = state["rows"] / state["rows"].mean(-1, keepdim=True), state["columns"]
        own_rows = cut(rows, (without(offsets, -1), without(sizes, -1)))
        own_columns = cut(columns, (without(offsets, -2), without(sizes, -2)))
        return piece * own_rows.rsqrt()[..., :, None] * own_columns.rsqrt()[..., None, :]

    def _begin(self, state: dict[str, Any], weight: Tensor) -> None:
        state["step"] = torch.zeros(())
        if weight.dim() < 2:
            state["square"] = torch.zeros_like(weight)
        else:
            wide = local(weight)
            state["rows"], state["columns"] = (
                wide.new_zeros(weight.shape[:-1]),
                wide.new_zeros(*weight.shape[:-2], weight.shape[-1]),
            )
        if self.spec.momentum is not None:
            state["mean"] = torch.zeros_like(weight)


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """A piece as what it is a piece of."""
    from torch.distributed.tensor import DTensor

    if not isinstance(weight, DTensor) or isinstance(value, DTensor):
        return value
    return DTensor.from_local(
        value, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )
