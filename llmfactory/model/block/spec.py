"""Catalogue of block wirings: how norm, attention and feed-forward join the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.spec import Spec

if TYPE_CHECKING:
    from torch import nn

    from llmfactory.model.frame import Frame, Site
    from llmfactory.model.part import Part


@dataclass(kw_only=True, slots=True)
class BlockSpec(Spec):
    """Base of the block wirings."""

    def build(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> Part:
        """Wire built parts; `site.frame.norm` makes the norms that the wiring needs."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of model/block")

    def last_norm(self, frame: Frame) -> nn.Module:
        """What follows the last block: a norm, unless a wiring's blocks end with one."""
        return frame.norm(frame.dim)


@dataclass(kw_only=True, slots=True)
class PreNorm(BlockSpec):
    """x + f(norm(x)) for attention, then for feed-forward (Xiong et al. 2020)."""

    def build(self, site: Site, attention: Part, ffn: Part, cross: Part | None, dropout: float) -> Part:
        from llmfactory.model.block.pre_norm import PreNormBlock

        return PreNormBlock(site, attention, ffn, cross, dropout)
