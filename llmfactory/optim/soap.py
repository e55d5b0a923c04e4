"""SOAP (Vyas et al. 2024, "SOAP: improving and stabilizing Shampoo using Adam", algorithm 3): Adam in the eigenbasis of Shampoo.

For a matrix W [n, m] with gradient G, and Q_L, Q_R the eigenvectors of running means L of G G' and R of G' G:

    M = b1 M + (1 - b1) G,   V = b2 V + (1 - b2) (Q_L' G Q_R)^2,   W = W - lr Q_L (Q_L' M Q_R / (sqrt(V) + eps)) Q_R'

after Adam's corrections for the first steps. Every `refresh_every` steps the bases follow L and R by one power iteration, made
orthogonal again (algorithm 4). As in the authors' implementation, the first step only finds the bases, of the first gradient, and L
and R take a gradient after its step, so that no step is made in a basis that knows its gradient. Stacks of matrices [..., n, m] have
bases of their own; a side longer than `largest_side` has none (section 7.1), which is Adam along it.

Sums over whole rows and columns need the whole matrix: the processes that hold its pieces put gradient, M and V together, and each
keeps its piece of what comes out. L, R and the bases are whole on every process.

Gradients leave directions in which nothing was seen yet, where any basis is one of eigenvectors. Rounding would choose it, another
one on each layout, and Adam's steps depend on it. So it is chosen by what it is nearest to (`eigenbasis`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmfactory.optim.adamw import adamw_step
from llmfactory.optim.groups import MATRIX
from llmfactory.optim.optimizer import StepOptimizer
from llmfactory.optim.spec import Soap as SoapSpec
from llmfactory.parallel.weights import box, cut, local, whole

LEFT, RIGHT = "left", "right"
"""Names of a side's state [2, ..., n, n]: the running mean of products, and its basis in columns."""
NOTHING = 1e-6
"""Eigenvalues below so much of the largest count as none: rounding turns their eigenvectors by its inverse."""
SHIFT = 1e-5
"""Added to the eigenvalues, as a multiple of their mean, before a power iteration: directions without any keep their basis."""


class Soap(StepOptimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: SoapSpec) -> None:
        super().__init__(groups, spec)
        self.spec = spec

    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        if group[MATRIX]:
            for weight in weights:
                self._step(weight, group["lr"], group["weight_decay"])
        else:
            adamw_step(self.state, weights, self.spec, lr=group["lr"], decay=group["weight_decay"])

    def _step(self, weight: Tensor, lr: float, decay: float) -> None:
        state, spec, (first, second) = self.state[weight], self.spec, self.spec.betas
        assert weight.grad is not None
        gradient = whole(weight.grad)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if not state:
            self._begin(state, weight, gradient)
        for side in (LEFT, RIGHT):
            if side in state:
                state[side] = state[side].to(gradient.device)  # a checkpoint gives back on the host what is not cut
        step = int(state["step"].item())
        state["step"] += 1
        if step > 0:
            state["mean"].lerp_(weight.grad, 1 - first)
            square = whole(state["square"]).to(gradient.dtype)
            square = square.lerp(turned(gradient, state).square(), 1 - second)
            mean = whole(state["mean"]).to(gradient.dtype)
            length = lr * (1 - second**step) ** 0.5 / (1 - first**step)
            found = turned(turned(mean, state) / (square.sqrt() + spec.eps), state, back=True)
            local(weight).mul_(1 - lr * decay).add_(cut(found, box(weight)).to(weight.dtype), alpha=-length)
        else:
            square = torch.zeros_like(gradient)
        square = self._follow(state, gradient, square, step)
        local(state["square"]).copy_(cut(square, box(weight)))

    def _begin(self, state: dict[str, Any], weight: Tensor, gradient: Tensor) -> None:
        state["step"] = torch.zeros(())
        state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        for side, size in ((LEFT, weight.shape[-2]), (RIGHT, weight.shape[-1])):
            if size <= self.spec.largest_side:
                state[side] = gradient.new_zeros(2, *weight.shape[:-2], size, size)

    def _follow(self, state: dict[str, Any], gradient: Tensor, square: Tensor, step: int) -> Tensor:
        """Let the bases learn of a gradient; the mean square, whose rows and columns go where their directions go."""
        for side, dim in ((LEFT, -2), (RIGHT, -1)):
            if side not in state:
                continue
            products, basis = state[side]
            products.lerp_(gradient @ gradient.mT if side == LEFT else gradient.mT @ gradient, 1 - self.spec.basis_beta)
            if step == 0:
                basis.copy_(eigenbasis(products))
            elif step % self.spec.refresh_every == 0:
                refreshed, order = iterated(products, basis)
                basis.copy_(refreshed)
                index = order.unsqueeze(-1 if dim == -2 else -2).expand_as(square)
                square = square.gather(dim, index)
        return square


def turned(matrix: Tensor, state: dict[str, Any], back: bool = False) -> Tensor:
    """[..., n, m] in the bases; `back`: out of them."""
    if LEFT in state:
        basis = state[LEFT][1]
        matrix = (basis if back else basis.mT) @ matrix
    if RIGHT in state:
        basis = state[RIGHT][1]
        matrix = matrix @ (basis.mT if back else basis)
    return matrix


def eigenbasis(products: Tensor) -> Tensor:
    """Eigenvectors of [..., n, n] in columns, those of the largest eigenvalues first. Of those without any, the ones that a small
    pull towards the axes, another for each, would choose: the same whatever rounding did."""
    size = products.shape[-1]
    exact = products.double()
    values, found = torch.linalg.eigh(exact)
    pull = torch.arange(1.0, size + 1, dtype=torch.float64, device=products.device)
    flat_values, flat = values.reshape(-1, size), found.reshape(-1, size, size)
    for number in range(len(flat)):
        count = int((flat_values[number] <= NOTHING * flat_values[number, -1]).sum())
        if count:
            empty = flat[number, :, :count]  # eigenvalues come in ascending order
            _, chosen = torch.linalg.eigh(empty.mT @ (pull[:, None] * empty))
            flat[number, :, :count] = empty @ chosen
    basis: Tensor = flat.view_as(found).flip(-1).to(products.dtype)
    return basis


def iterated(products: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The basis after a power iteration, largest eigenvalues first, and from which places its columns come."""
    shift = SHIFT * products.diagonal(dim1=-2, dim2=-1).mean(-1)
    moved = products @ basis + shift[..., None, None] * basis
    order = (basis * moved).sum(-2).argsort(dim=-1, descending=True)
    sorted_columns = moved.gather(-1, order.unsqueeze(-2).expand_as(moved))
    return torch.linalg.qr(sorted_columns)[0], order
