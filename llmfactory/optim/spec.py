"""Catalogue of optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.kernel import Kernel
from llmfactory.core.spec import Spec, above, at_least, between
from llmfactory.optim.average.spec import AverageSpec
from llmfactory.optim.average.spec import None_ as NoAverage
from llmfactory.optim.schedule.spec import ScheduleSpec
from llmfactory.optim.width.spec import None_ as NoWidth
from llmfactory.optim.width.spec import WidthSpec

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from llmfactory.optim.average.average import Average

SCALE_BYTES = 4
"""Of what a block of 8-bit numbers is multiplied by."""


@dataclass(kw_only=True, slots=True)
class OptimSpec(Spec):
    """Base of the optimizers."""

    matrices_apart: ClassVar[bool] = False
    """It treats matrices from features to features in a way of their own: they stand in groups apart."""
    elementwise: ClassVar[bool] = False
    """Each number of a weight is updated by itself, so that it does not matter where weights are cut."""
    lr: float
    """Peak learning rate; the schedule multiplies it."""
    schedule: ScheduleSpec
    average: AverageSpec = field(default_factory=NoAverage)
    """Which weights are measured, saved and handed on, if not those that are trained."""
    width: WidthSpec = field(default_factory=NoWidth)
    """How first weights and learning rates follow the model's width."""
    weight_decay: float = 0.1
    """Decay of matrices; norms, biases and what parts declare as such are never decayed."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; larger ones are scaled down to it. None: no clipping (the norm is still reported)."""
    clip_value: float | None = None
    """Largest number in a gradient, either way, after clip_norm; what lies beyond is set to it. None: no bound."""
    layer_decay: float | None = None
    """Each layer learns at this multiple of the rate of the one above it, for fine-tuning (ELECTRA: 0.8); None: all at the same."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """By patterns of parameters' names, multiples of their learning rate; the last one that means a parameter. '{embedding: 0.1}'"""
    weight_decays: dict[str, float] = field(default_factory=dict)
    """By patterns too, their weight decay in the place of the usual one. '{*norm: 0.1, bias: 0.1, head: 0}'"""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "lr", repair=3e-4)
        yield from at_least(self, 0.0, "weight_decay")
        yield from above(self, 0.0, "clip_norm", "clip_value", repair=1.0)
        if self.clip_norm is not None and self.clip_value is not None and self.clip_value >= self.clip_norm:
            reason = f"no number of a gradient is larger once its norm is at most clip_norm={self.clip_norm:g}"
            yield Problem("clip_value", self.clip_value, reason, "clip_norm=null")
        if self.layer_decay is not None and not 0.0 < self.layer_decay < 1.0:
            yield Problem("layer_decay", self.layer_decay, "must lie between 0 and 1, both excluded", "layer_decay=0.8")
        for name in ("lr_factors", "weight_decays"):
            if wrong := {key: number for key, number in getattr(self, name).items() if number < 0}:
                kept = {key: number for key, number in getattr(self, name).items() if number >= 0}
                shown = ",".join(f"{key}:{number:g}" for key, number in kept.items())
                yield Problem(name, wrong, "must be at least 0", f"{name}={{{shown}}}")

    def state_copies(self) -> int:
        """How many numbers the optimizer keeps for each weight."""
        return 2

    def state_bytes(self, width: int) -> float:
        """Bytes that it keeps for each weight of so many bytes."""
        return float(self.state_copies() * width)

    def averaging(self, max_steps: int) -> Average | None:
        """What makes the weights that are used of those that are trained; None: they are the same."""
        return self.average.build(max_steps)

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        """The optimizer over parameter groups made by `optim/groups.py`; their lr is set before every step."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of optim")


@dataclass(kw_only=True, slots=True)
class MomentsSpec(OptimSpec):
    """Base of the optimizers that divide a running mean of the gradient by the root of one of its square."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay rates of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the denominator."""

    def problems(self) -> Iterator[Problem]:
        yield from OptimSpec.problems(self)
        yield from above(self, 0.0, "eps", repair=1e-8)
        yield from _two_rates(self.betas, "[0.9,0.95]")


def _two_rates(betas: list[float], repair: str) -> Iterator[Problem]:
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        yield Problem("betas", betas, "must be two numbers in [0, 1)", f"betas={repair}")


@dataclass(kw_only=True, slots=True)
class Adamw(MomentsSpec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), PyTorch's fused implementation."""

    elementwise: ClassVar[bool] = True
    kernel: Kernel = Kernel.torch
    """Who computes the step; triton: a kernel of ours, tensor by tensor (docs/kernels.md)."""

    def problems(self) -> Iterator[Problem]:
        yield from MomentsSpec.problems(self)
        if self.kernel not in (Kernel.torch, Kernel.triton):
            yield Problem("kernel", self.kernel.name, "a step is computed by PyTorch or by Triton", "kernel=torch")

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.adamw import adamw

        return adamw(self, groups)


@dataclass(kw_only=True, slots=True)
class Adamw8bit(MomentsSpec):
    """AdamW whose running means rest in 8 bits between steps, block by block (Dettmers et al. 2022): a quarter of the memory in
    float32."""

    block_size: int = 256
    """Numbers of a row that share a scale; a row's last block may be shorter."""
    least_size: int = 4096
    """Matrices with fewer weights keep their running means in full, and so do vectors."""

    def problems(self) -> Iterator[Problem]:
        yield from MomentsSpec.problems(self)
        yield from at_least(self, 2, "block_size")
        yield from at_least(self, 0, "least_size")

    def is_coded(self, shape: Sequence[int]) -> bool:
        """Whether the means of a parameter of this shape rest in 8 bits."""
        return len(shape) >= 2 and math.prod(shape) >= self.least_size

    def state_bytes(self, width: int) -> float:
        return 2 * (1 + SCALE_BYTES / self.block_size)

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.adamw8bit import Adamw8bit as Adamw8bitOptimizer

        return Adamw8bitOptimizer(groups, self)


@dataclass(kw_only=True, slots=True)
class ScheduleFree(MomentsSpec):
    """AdamW that needs no schedule: it trains at one point and hands on a mean of many (Defazio et al. 2024, algorithm 1). Wants a
    rate one to ten times AdamW's."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """How near the mean the model is trained, and the decay rate of the running mean of the gradient's square."""

    def problems(self) -> Iterator[Problem]:
        yield from MomentsSpec.problems(self)
        if self.betas and self.betas[0] == 0.0:
            yield Problem(
                "betas", self.betas, "the first must be above 0: the mean is found from it", f"betas=[0.9,{self.betas[-1]:g}]"
            )

    def averaging(self, max_steps: int) -> Average | None:
        from llmfactory.optim.schedule_free import ScheduleFreeAverage

        return ScheduleFreeAverage(self)

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.schedule_free import ScheduleFree as ScheduleFreeOptimizer

        return ScheduleFreeOptimizer(groups, self)


@dataclass(kw_only=True, slots=True)
class Adam(MomentsSpec):
    """Adam (Kingma and Ba 2015, algorithm 1), PyTorch's fused implementation; weight decay is added to the gradient."""

    elementwise: ClassVar[bool] = True
    weight_decay: float = 0.0
    """Added to the gradient of matrices as a multiple of them, so that it passes through the running means; adamw's does not."""

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.adam import adam

        return adam(self, groups)


@dataclass(kw_only=True, slots=True)
class Lamb(MomentsSpec):
    """Adam's update of each weight tensor, made as long as a share of the tensor itself (You et al. 2020, algorithm 2), for batches of
    tens of thousands of rows."""

    eps: float = 1e-6
    """Added to the denominator."""

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.lamb import Lamb as LambOptimizer

        return LambOptimizer(groups, self)


@dataclass(kw_only=True, slots=True)
class Adafactor(OptimSpec):
    """Adam without its memory: of the squares of a matrix's gradient, means of rows and columns (Shazeer and Stern 2018,
    algorithm 4). T5 and PaLM were trained with it."""

    decay_power: float = 0.8
    """The running mean of squares forgets by 1 - step^-decay_power at each step."""
    momentum: float | None = None
    """Decay rate of a running mean of the updates, a number more for each weight; None: there is none."""
    update_clip: float = 1.0
    """Updates with a larger root mean square are scaled down to it, tensor by tensor; d in the paper."""
    scale_by_weights: bool = True
    """The rate is relative to the root mean square of the tensor that is updated."""
    least_scale: float = 1e-3
    """Least root mean square that is taken then, so that what begins at zero moves."""
    eps: float = 1e-30
    """Added to the squares."""

    def problems(self) -> Iterator[Problem]:
        yield from OptimSpec.problems(self)
        yield from between(self, 0.0, 1.0, "decay_power")
        yield from between(self, 0.0, 0.999, "momentum")
        for name, repair in (("update_clip", 1.0), ("least_scale", 1e-3), ("eps", 1e-30)):
            yield from above(self, 0.0, name, repair=repair)
        if not self.scale_by_weights and self.least_scale != 1e-3:
            reason = "it bounds the scale of weights, and scale_by_weights=false takes none"
            yield Problem("least_scale", self.least_scale, reason, "least_scale=0.001")

    def state_copies(self) -> int:
        return 0 if self.momentum is None else 1

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.adafactor import Adafactor as AdafactorOptimizer

        return AdafactorOptimizer(groups, self)


class Scale(Enum):
    """How long the update of a matrix [n, m] is, whose singular values are about one."""

    spectral = "sqrt(max(1, n / m)): the same change of features for any shape (Jordan et al. 2024)"
    like_adamw = "0.2 sqrt(max(n, m)): as long as AdamW's, whose rate and decay then fit (Liu et al. 2025, equation 4)"


@dataclass(kw_only=True, slots=True)
class Muon(MomentsSpec):
    """Momentum whose matrices are made orthogonal by Newton-Schulz iterations (Jordan et al. 2024); tables of tokens and vectors learn
    by AdamW."""

    matrices_apart: ClassVar[bool] = True
    momentum: float = 0.95
    """Share of the running mean of gradients that is kept, for matrices."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    iterations: int = 5
    """Newton-Schulz iterations."""
    scale: Scale = Scale.like_adamw
    """Length of the updates of matrices."""
    rest_factor: float = 1.0
    """The learning rate of everything else, as a multiple of the matrices'."""

    def problems(self) -> Iterator[Problem]:
        yield from MomentsSpec.problems(self)
        yield from between(self, 0.0, 0.999, "momentum")
        yield from at_least(self, 1, "iterations")
        yield from above(self, 0.0, "rest_factor", repair=1.0)

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.muon import Muon as MuonOptimizer

        return MuonOptimizer(groups, self)


@dataclass(kw_only=True, slots=True)
class Soap(MomentsSpec):
    """Adam in the eigenbasis of Shampoo's running means (Vyas et al. 2024, algorithm 3), for matrices; tables of tokens and vectors
    learn by AdamW."""

    matrices_apart: ClassVar[bool] = True
    betas: list[float] = field(default_factory=lambda: [0.95, 0.95])
    """Decay rates of the running means of the gradient and of its square."""
    basis_beta: float = 0.95
    """Decay rate of the running means of G G' and G' G, whose eigenvectors are the bases."""
    refresh_every: int = 10
    """Steps between two power iterations, which let the bases follow."""
    largest_side: int = 10_000
    """Longer sides of a matrix have no basis."""

    def problems(self) -> Iterator[Problem]:
        yield from MomentsSpec.problems(self)
        yield from between(self, 0.0, 0.9999, "basis_beta")
        yield from at_least(self, 1, "refresh_every", "largest_side")

    def state_copies(self) -> int:
        """Of a square matrix; others keep more, and what is beside the two running means is whole on every process."""
        return 6

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.soap import Soap as SoapOptimizer

        return SoapOptimizer(groups, self)


@dataclass(kw_only=True, slots=True)
class Lion(OptimSpec):
    """The sign of a mean of gradients (Chen et al. 2023, algorithm 2): one number of state for each weight; wants a rate three to ten
    times below Adam's, and as many times its weight decay."""

    elementwise: ClassVar[bool] = True
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    """Share of the running mean in the update, and in the next running mean."""

    def problems(self) -> Iterator[Problem]:
        yield from OptimSpec.problems(self)
        yield from _two_rates(self.betas, "[0.9,0.99]")

    def state_copies(self) -> int:
        return 1

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.lion import Lion as LionOptimizer

        return LionOptimizer(groups, self)


@dataclass(kw_only=True, slots=True)
class Sgd(OptimSpec):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013); weight decay is added to the gradient, as in PyTorch."""

    elementwise: ClassVar[bool] = True
    momentum: float = 0.9
    """Share of the last update that is kept."""
    nesterov: bool = False
    """Look ahead along the momentum."""

    def problems(self) -> Iterator[Problem]:
        yield from OptimSpec.problems(self)
        yield from between(self, 0.0, 0.999, "momentum")
        if self.nesterov and self.momentum == 0:
            yield Problem("nesterov", True, "needs momentum", "momentum=0.9")

    def state_copies(self) -> int:
        return 1 if self.momentum else 0

    def build(self, groups: Iterable[dict[str, Any]]) -> Optimizer:
        from llmfactory.optim.sgd import sgd

        return sgd(self, groups)
