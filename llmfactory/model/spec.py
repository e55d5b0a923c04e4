"""Catalogue of skeletons: one class a forward graph. Families (GPT-2, LLaMA, ...) are presets in conf/model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between
from llmfactory.model.attention.spec import AttentionSpec
from llmfactory.model.block.spec import BlockSpec
from llmfactory.model.embedding.spec import EmbeddingSpec
from llmfactory.model.ffn.spec import FfnSpec
from llmfactory.model.head.spec import HeadSpec
from llmfactory.model.norm.spec import NormSpec
from llmfactory.model.position.spec import PositionSpec

if TYPE_CHECKING:
    from llmfactory.model.decoder_only import Decoder


@dataclass(kw_only=True, slots=True)
class ModelSpec(Spec):
    """Base of the skeletons."""

    vocab_size: int
    """Rows of the embedding; at least the tokenizer's vocabulary (published models pad it)."""
    dim: int
    """Width of the residual stream."""
    max_positions: int
    """Longest sequence, in tokens, that the model is made for."""
    init_std: float = 0.02
    """Standard deviation of the initial weight matrices."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "vocab_size", "dim", "max_positions")
        yield from above(self, 0.0, "init_std", repair=0.02)


@dataclass(kw_only=True, slots=True)
class DecoderOnly(ModelSpec):
    """A stack of causal self-attention blocks (Radford et al. 2018): GPT, LLaMA and their kin."""

    n_layers: int
    """Number of blocks."""
    norm: NormSpec
    position: PositionSpec
    attention: AttentionSpec
    ffn: FfnSpec
    block: BlockSpec
    embedding: EmbeddingSpec
    head: HeadSpec
    dropout: float = 0.0
    """Share of activations dropped after the embedding and after each sub-layer, in training only."""
    depth_scaled_init: bool = True
    """Divide the initial std of the matrices that write to the residual stream by sqrt(2 n_layers) (GPT-2, section 2.3)."""

    def problems(self) -> Iterator[Problem]:
        yield from ModelSpec.problems(self)
        yield from at_least(self, 1, "n_layers")
        yield from between(self, 0.0, 0.99, "dropout")
        yield from (problem.below("attention") for problem in self.attention.problems_at_width(self.dim))
        if self.dim % self.attention.n_heads == 0:  # else there is no head width to speak of
            head_dim = self.attention.head_width(self.dim)
            yield from (problem.below("position") for problem in self.position.problems_at_head(head_dim))

    def build(self) -> Decoder:
        """The module, on the current default device (use `torch.device("meta")` to count without allocating)."""
        from llmfactory.model.decoder_only import Decoder

        return Decoder(self)
