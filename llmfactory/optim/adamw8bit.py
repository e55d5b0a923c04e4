"""AdamW (Loshchilov and Hutter 2019, algorithm 2) that keeps its two running means in 8 bits between steps (Dettmers et al. 2022).

    m = b1 decoded(m) + (1 - b1) g,   v = b2 decoded(v) + (1 - b2) g^2,   w = w - lr decay w - lr m^ / (sqrt(v^) + eps)

then m and v are encoded again (`dynamic_code.py`); the step itself uses them as they are before that. Vectors and small matrices
keep theirs in full, by the fused kernel. Some rows at a time stand decoded, so that a step takes no more memory than its state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llmfactory.optim.adamw import adamw_step
from llmfactory.optim.dynamic_code import Blocks
from llmfactory.optim.optimizer import StepOptimizer
from llmfactory.optim.spec import Adamw8bit as Adamw8bitSpec
from llmfactory.parallel.weights import local

MEANS = {"mean": True, "square": False}
"""Names of the running means, and whether their numbers have signs."""
SCALE = "_scale"
AT_ONCE = 1 << 17
"""Numbers that are decoded at a time: they stay in the cache."""


class Adamw8bit(StepOptimizer):
    def __init__(self, groups: Iterable[dict[str, Any]], spec: Adamw8bitSpec) -> None:
        super().__init__(groups, spec)
        self.spec = spec

    def update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        coded = [weight for weight in weights if self.spec.is_coded(weight.shape)]
        full = [weight for weight in weights if not self.spec.is_coded(weight.shape)]
        if full:
            adamw_step(self.state, full, self.spec, lr=group["lr"], decay=group["weight_decay"])
        for weight in coded:
            self._coded_step(weight, group["lr"], group["weight_decay"])

    def _coded_step(self, weight: Tensor, lr: float, decay: float) -> None:
        state, blocks = self.state[weight], Blocks(weight, self.spec.block_size)
        assert weight.grad is not None
        if not state:
            self._begin(state, weight, blocks)
        state["step"] += 1
        step = int(state["step"].item())
        piece, gradient = _rows(local(weight)), _rows(local(weight.grad).contiguous())
        codes = [_rows(local(state[name])) for name in MEANS]
        scales = [blocks.own(state[name + SCALE]) for name in MEANS]
        tables = [_rows(one) for one in scales]
        wide = torch.promote_types(piece.dtype, torch.float32)
        at_once = max(1, len(piece) if blocks.across else AT_ONCE // weight.shape[-1])
        for start in range(0, len(piece), at_once):
            some = slice(start, start + at_once)
            means = [
                blocks.decode(code[some], scale[some], signed).to(wide)
                for code, scale, signed in zip(codes, tables, MEANS.values(), strict=True)
            ]
            self._adam_step(piece[some], gradient[some].to(wide), means, step, lr, decay)
            found = blocks.scales(means)
            for code, scale, mean, new, signed in zip(codes, tables, means, found, MEANS.values(), strict=True):
                scale[some].copy_(new)
                code[some].copy_(blocks.encode(mean, new, signed))
        for name, scale in zip(MEANS, scales, strict=True):
            state[name + SCALE] = blocks.laid_out(scale)

    def _adam_step(self, weight: Tensor, gradient: Tensor, means: list[Tensor], step: int, lr: float, decay: float) -> None:
        (mean, square), (first, second) = means, self.spec.betas
        mean.lerp_(gradient, 1 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = square.div(1 - second**step).sqrt_().add_(self.spec.eps)
        change = root.reciprocal_().mul_(mean)
        weight.copy_(weight.to(gradient.dtype).mul(1 - lr * decay).sub_(change, alpha=lr / (1 - first**step)))

    @staticmethod
    def _begin(state: dict[str, Any], weight: Tensor, blocks: Blocks) -> None:
        state["step"] = torch.zeros(())
        for name in MEANS:
            state[name] = torch.zeros_like(weight, dtype=torch.uint8, requires_grad=False, memory_format=torch.contiguous_format)
            state[name + SCALE] = blocks.laid_out(torch.zeros(blocks.rows[1], device=local(weight).device))


def _rows(tensor: Tensor) -> Tensor:
    """[..., n] -> [rows, n], in the same memory."""
    return tensor.view(math.prod(tensor.shape[:-1]), tensor.shape[-1])
