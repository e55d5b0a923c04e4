"""Catalogue of sequence mixers: parts that carry a state from token to token instead of looking back at all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least

if TYPE_CHECKING:
    from llmfactory.model.frame import Site
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class MixerSpec(Spec):
    """Base of the mixers, [B, T, dim] -> [B, T, dim]. The state starts anew with each document; padding leaves it alone."""

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        """What is wrong once the model's width is known."""
        yield from ()

    def build(self, site: Site) -> Part:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/mixer")


@dataclass(kw_only=True, slots=True)
class Lstm(MixerSpec):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers et al. 2000)."""

    bias: bool = True
    """Whether the gates have a bias."""
    forget_bias: float = 0.0
    """Initial bias of the forget gate; 1 lets a fresh model remember (Jozefowicz et al. 2015, section 2.2)."""

    def problems(self) -> Iterator[Problem]:
        if self.forget_bias and not self.bias:
            yield Problem("forget_bias", self.forget_bias, "the gates have no bias (bias=false)", "forget_bias=0.0")

    def build(self, site: Site) -> Part:
        from llmfactory.model.mixer.lstm import LongShortTermMemory

        return LongShortTermMemory(self, site)


@dataclass(kw_only=True, slots=True)
class Gru(MixerSpec):
    """Gated recurrent unit (Cho et al. 2014), the reset gate applied after the matrix product, as cuDNN and PyTorch have it."""

    bias: bool = True
    """Whether the gates have biases."""

    def build(self, site: Site) -> Part:
        from llmfactory.model.mixer.gru import GatedRecurrentUnit

        return GatedRecurrentUnit(self, site)


class Squash(Enum):
    """The function around a plain recurrence."""

    tanh = "tanh"
    relu = "max(0, x) (Le et al. 2015)"


@dataclass(kw_only=True, slots=True)
class Rnn(MixerSpec):
    """Plain recurrence (Elman 1990): h_t = f(W x_t + U h_{t-1} + b)."""

    activation: Squash = Squash.tanh
    """f."""
    bias: bool = True
    """Whether there is b."""

    def build(self, site: Site) -> Part:
        from llmfactory.model.mixer.rnn import ElmanNetwork

        return ElmanNetwork(self, site)


@dataclass(kw_only=True, slots=True)
class Mamba(MixerSpec):
    """Selective state space (Gu and Dao 2023, section 3): a diagonal recurrence whose step size, input and output depend on
    the token, behind a short convolution and beside a gate."""

    expand: int
    """Inner width by the model's width."""
    state: int
    """State numbers for each inner channel, N."""
    conv: int
    """Tokens that the convolution sees: its own and those before it."""
    rank: int | None = None
    """Width through which the step size is computed; None: a sixteenth of the model's width, rounded up."""
    bias: bool = False
    """Whether the projections into and out of the inner width have a bias."""
    conv_bias: bool = True
    """Whether the convolution has a bias."""
    step_min: float = 0.001
    """Smallest step size that a channel starts with."""
    step_max: float = 0.1
    """Largest; they are spread evenly on a logarithmic scale."""
    step_floor: float = 1e-4
    """No channel starts with a smaller one, whatever step_min is."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "expand", "state", "conv", "rank")
        yield from above(self, 0.0, "step_min", "step_floor", repair=1e-4)
        if self.step_max < self.step_min:
            yield Problem("step_max", self.step_max, f"is below step_min={self.step_min}", f"step_max={self.step_min}")

    def small(self, scale: float) -> dict[str, Any]:
        return {"rank": None if self.rank is None else max(1, round(self.rank * scale))}

    def rank_at(self, dim: int) -> int:
        """`rank` in a model of width `dim`."""
        return self.rank or math.ceil(dim / 16)

    def build(self, site: Site) -> Part:
        from llmfactory.model.mixer.mamba import SelectiveStateSpace

        return SelectiveStateSpace(self, site)


@dataclass(kw_only=True, slots=True)
class LinearAttention(MixerSpec):
    """Causal attention without softmax, whose state is one matrix a head (Katharopoulos et al. 2020)."""

    n_heads: int
    """Number of heads."""
    bias: bool = False
    """Whether the four projections have a bias."""
    eps: float = 1e-6
    """Added to the normalizer."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "n_heads")
        yield from above(self, 0.0, "eps", repair=1e-6)

    def problems_at_width(self, dim: int) -> Iterator[Problem]:
        if dim % self.n_heads:
            below = next(n for n in range(min(self.n_heads, dim), 0, -1) if dim % n == 0)
            yield Problem("n_heads", self.n_heads, f"does not divide the model's width dim={dim}", f"n_heads={below}")

    def small(self, scale: float) -> dict[str, Any]:
        """Few heads."""
        return {"n_heads": min(self.n_heads, 4)}

    def build(self, site: Site) -> Part:
        from llmfactory.model.mixer.linear_attention import KernelAttention

        return KernelAttention(self, site)
