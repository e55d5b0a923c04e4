"""Catalogue of feed-forward parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between

if TYPE_CHECKING:
    from llmfactory.model.frame import Site
    from llmfactory.model.part import Part

SMALL_EXPERTS = 8
"""Experts of a layer at laptop size."""


class Activation(Enum):
    """Pointwise nonlinearities."""

    relu = "max(x, 0)"
    gelu = "x Phi(x), exact"
    gelu_tanh = "GELU by its tanh approximation (GPT-2)"
    silu = "x sigmoid(x)"
    relu2 = "max(x, 0)^2 (So et al. 2021)"
    tanh = "hyperbolic tangent (BERT's pooler)"
    quick_gelu = "x sigmoid(1.702 x) (CLIP)"


@dataclass(kw_only=True, slots=True)
class FfnSpec(Spec):
    """Base of the feed-forward parts."""

    hidden: int
    """Width of the hidden layer."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "hidden")

    def small(self, scale: float) -> dict[str, Any]:
        return {"hidden": max(1, round(self.hidden * scale))}

    def build(self, site: Site) -> Part:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/ffn")


@dataclass(kw_only=True, slots=True)
class Mlp(FfnSpec):
    """down(activation(up(x))) (Vaswani et al. 2017, equation 2)."""

    activation: Activation
    """The nonlinearity."""
    bias: bool = True
    """Whether the two projections have a bias."""

    def build(self, site: Site) -> Part:
        from llmfactory.model.ffn.mlp import MultiLayerPerceptron

        return MultiLayerPerceptron(self, site)


@dataclass(kw_only=True, slots=True)
class Glu(FfnSpec):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020, equation 6). SwiGLU: silu; GeGLU: gelu; ReGLU: relu."""

    activation: Activation
    """The gate's nonlinearity."""
    bias: bool = False
    """Whether the three projections have a bias."""

    def build(self, site: Site) -> Part:
        from llmfactory.model.ffn.glu import GatedLinearUnit

        return GatedLinearUnit(self, site)


class BalanceOver(Enum):
    """The tokens over which the balance of experts is taken."""

    sequence = "each row by itself (DeepSeek-V3, equations 17-20): the same however rows are shared out"
    batch = "all rows of the step at once (Switch, equations 4-6; Mixtral): one micro-batch and one process only"


class Score(Enum):
    """How a router's logits become the weights of experts."""

    softmax = "softmax over all experts (Mixtral, Qwen-MoE, DeepSeek-V2)"
    sigmoid = "sigmoid of each (DeepSeek-V3, equation 15)"


@dataclass(kw_only=True, slots=True)
class MoeSpec(FfnSpec):
    """Base of the mixtures of experts; `hidden` is the width of one expert's hidden layer. Experts have no biases."""

    n_experts: int
    """Experts of a layer."""
    activation: Activation
    """The experts' nonlinearity."""
    gated: bool
    """Experts are gated linear units with three matrices; false: perceptrons with two."""
    balance: float = 0.0
    """Weight of the load-balance loss, summed over the layers (Fedus et al. 2021, equation 4); 0: none."""
    balance_over: BalanceOver = BalanceOver.sequence
    """The tokens over which the balance is taken."""
    z: float = 0.0
    """Weight of the router z-loss, summed over the layers (Zoph et al. 2022, equation 5); 0: none."""
    jitter: float = 0.0
    """In training the router sees its input times uniform numbers from [1 - jitter, 1 + jitter] (Fedus et al. 2021, section 2.4)."""

    def problems(self) -> Iterator[Problem]:
        yield from FfnSpec.problems(self)
        yield from at_least(self, 1, "n_experts")
        yield from at_least(self, 0.0, "balance", "z")
        yield from between(self, 0.0, 0.99, "jitter")

    def small(self, scale: float) -> dict[str, Any]:
        return {**FfnSpec.small(self, scale), "n_experts": min(self.n_experts, SMALL_EXPERTS)}


@dataclass(kw_only=True, slots=True)
class Switch(MoeSpec):
    """One expert a token, at most so many tokens an expert; tokens over it pass by the residual alone (Fedus et al. 2021)."""

    capacity_factor: float | None = None
    """An expert takes at most this times (tokens / n_experts), rounded up, of each row (equation 3); None: no such limit."""
    capacity: int | None = None
    """An expert takes at most this many tokens of each row; None: no such limit."""

    def problems(self) -> Iterator[Problem]:
        yield from MoeSpec.problems(self)
        yield from above(self, 0.0, "capacity_factor", repair=1.25)
        yield from at_least(self, 1, "capacity")

    def build(self, site: Site) -> Part:
        from llmfactory.model.ffn.switch import SwitchLayer

        return SwitchLayer(self, site)


@dataclass(kw_only=True, slots=True)
class Moe(MoeSpec):
    """Each token visits its best `k` experts, none is dropped (Shazeer et al. 2017; Jiang et al. 2024, section 2.1)."""

    k: int
    """Experts that a token visits."""
    score: Score = Score.softmax
    """How logits become weights."""
    normalize: bool = True
    """Divide the weights of the chosen experts by their sum."""
    scale: float = 1.0
    """Factor on the weights of the chosen experts, after `normalize` (DeepSeek's routed_scaling_factor)."""
    shared_hidden: int = 0
    """Width of the hidden layer of a feed-forward part that every token visits besides (DeepSeekMoE, Dai et al. 2024); 0: none."""
    shared_gate: bool = False
    """Weigh the shared part by a sigmoid of the token (Qwen-MoE)."""

    def problems(self) -> Iterator[Problem]:
        yield from MoeSpec.problems(self)
        yield from between(self, 1, max(self.n_experts, 1), "k")
        yield from above(self, 0.0, "scale", repair=1.0)
        yield from at_least(self, 0, "shared_hidden")
        if self.shared_gate and not self.shared_hidden:
            yield Problem("shared_gate", True, "there is no shared part (shared_hidden=0)", "shared_gate=false")

    def small(self, scale: float) -> dict[str, Any]:
        """As many visits of a token; twice as many experts at least, where there were."""
        experts = min(self.n_experts, max(SMALL_EXPERTS, 2 * self.k))
        shared = max(1, round(self.shared_hidden * scale)) if self.shared_hidden else 0
        return {**MoeSpec.small(self, scale), "n_experts": experts, "shared_hidden": shared}

    def build(self, site: Site) -> Part:
        from llmfactory.model.ffn.moe import MixtureOfExperts

        return MixtureOfExperts(self, site)
