"""Catalogue of block wirings: how norm, attention and feed-forward join the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above

if TYPE_CHECKING:
    from torch import nn

    from llmfactory.model.frame import Frame, Site
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class BlockSpec(Spec):
    """Base of the block wirings."""

    takes_cross: ClassVar[bool] = True
    """Whether the wiring has a place for attention to an encoder's output."""

    def build(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> Part:
        """Wire built parts; `site.frame.norm` makes the norms that the wiring needs."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/block")

    def last_norm(self, frame: Frame) -> nn.Module:
        """What follows the last block: a norm, unless a wiring's blocks end with one."""
        return frame.norm(frame.dim)

    def branch_scale(self, n_layers: int) -> float:
        """Factor on the initial std of the matrices that a sub-layer's output grows with: `Frame.branch_std`, `Frame.out_std`."""
        return 1.0


@dataclass(kw_only=True, slots=True)
class PreNorm(BlockSpec):
    """x + f(norm(x)) for attention, then for feed-forward (Xiong et al. 2020)."""

    def build(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> Part:
        from llmfactory.model.block.pre_norm import PreNormBlock

        return PreNormBlock(site, attention, ffn, cross, dropout)


@dataclass(kw_only=True, slots=True)
class PostNorm(BlockSpec):
    """norm(x + f(x)) for attention, then for feed-forward (Vaswani et al. 2017): GPT-1, BERT, BART."""

    def build(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> Part:
        from llmfactory.model.block.post_norm import PostNormBlock

        return PostNormBlock(site, attention, ffn, cross, dropout)

    def last_norm(self, frame: Frame) -> nn.Module:
        from torch import nn

        return nn.Identity()


@dataclass(kw_only=True, slots=True)
class Sandwich(BlockSpec):
    """x + norm'(f(norm(x))) for attention, then for feed-forward (Ding et al. 2021): Gemma 2."""

    def build(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> Part:
        from llmfactory.model.block.sandwich import SandwichBlock

        return SandwichBlock(site, attention, ffn, cross, dropout)


@dataclass(kw_only=True, slots=True)
class Parallel(BlockSpec):
    """x + attention(norm(x)) + ffn(norm'(x)), both reading the same input (GPT-J, GPT-NeoX, PaLM)."""

    takes_cross: ClassVar[bool] = False
    shared_norm: bool
    """Whether one norm serves both (GPT-J, PaLM), or each has its own (GPT-NeoX)."""

    def build(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> Part:
        from llmfactory.model.block.parallel import ParallelBlock

        return ParallelBlock(self, site, attention, ffn, dropout)


@dataclass(kw_only=True, slots=True)
class DeepNorm(BlockSpec):
    """norm(alpha x + f(x)) with alpha = (2 n_layers)^power (Wang et al. 2022, figure 2, of a stack by itself)."""

    takes_cross: ClassVar[bool] = False
    power: float = 0.25
    """Exponent of alpha: 1/4 in the paper, 1/2 in GLM-130B (Zeng et al. 2022, section 2.1)."""
    beta_layers: float = 8.0
    """The matrices that a sub-layer grows with start with beta = (beta_layers n_layers)^-power times the std: 8 in the paper, 2 in
    GLM-130B."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "power", repair=0.25)
        yield from above(self, 0.0, "beta_layers", repair=8.0)

    def alpha(self, n_layers: int) -> float:
        """Factor on the residual stream."""
        return float((2 * n_layers) ** self.power)

    def branch_scale(self, n_layers: int) -> float:
        return float((self.beta_layers * n_layers) ** -self.power)

    def build(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> Part:
        from llmfactory.model.block.deep_norm import DeepNormBlock

        return DeepNormBlock(self, site, attention, ffn, dropout)

    def last_norm(self, frame: Frame) -> nn.Module:
        from torch import nn

        return nn.Identity()
