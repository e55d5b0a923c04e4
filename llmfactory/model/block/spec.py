"""Catalogue of block wirings: how norm, attention and feed-forward join the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class BlockSpec(Spec):
    """Base of the block wirings."""

    def build(self, attention: Part, ffn: Part, norm: Callable[[], Part], dropout: float) -> Part:
        """Wire built parts; `norm` makes as many norms as the wiring needs."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/block")


@dataclass(kw_only=True, slots=True)
class PreNorm(BlockSpec):
    """x + f(norm(x)) for attention, then for feed-forward (Xiong et al. 2020)."""

    def build(self, attention: Part, ffn: Part, norm: Callable[[], Part], dropout: float) -> Part:
        from llmfactory.model.block.pre_norm import PreNormBlock

        return PreNormBlock(attention, ffn, norm, dropout)
