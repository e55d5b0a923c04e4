"""A stack of causal self-attention blocks (Radford et al. 2018): GPT, LLaMA and their kin.

`model(tokens, context)` ends at the normalized hidden vectors; `model.head` makes logits of them. They are apart so that a
loss may fuse the head and generation may ask for the last position only.
"""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.part import Part
from llmfactory.model.spec import DecoderOnly


class Decoder(Part):
    """tokens [B, T] -> hidden [B, T, D]. Values are undefined until `model/initialize.py` or a checkpoint has filled them."""

    def __init__(self, spec: DecoderOnly) -> None:
        super().__init__()
        self.spec = spec
        std = spec.init_std
        out_std = std / (2 * spec.n_layers) ** 0.5 if spec.depth_scaled_init else std
        head_dim = spec.attention.head_width(spec.dim)
        self.embedding = spec.embedding.build(spec.vocab_size, spec.dim, std)
        self.position = spec.position.build(spec.dim, head_dim, spec.max_positions, std)
        self.dropout = nn.Dropout(spec.dropout)
        self.blocks = nn.ModuleList(
            spec.block.build(
                spec.attention.build(spec.dim, layer, self.position, std, out_std),
                spec.ffn.build(spec.dim, std, out_std),
                lambda: spec.norm.build(spec.dim),
                spec.dropout,
            )
            for layer in range(spec.n_layers)
        )
        self.norm = spec.norm.build(spec.dim)
        self.head = spec.head.build(spec.vocab_size, spec.dim, self.embedding, std)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        x_BTD = self.dropout(self.position.embed(self.embedding(tokens_BT), context))
        context = self.position.prepare(context, x_BTD.dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, context)
        return self.norm(x_BTD)  # type: ignore[no-any-return]

    def chain(self) -> list[tuple[str, nn.Module]]:
        """The modules in forward order, by name: where a pipeline may be cut."""
        blocks = [(f"blocks.{layer}", block) for layer, block in enumerate(self.blocks)]
        return [
            ("embedding", self.embedding),
            ("position", self.position),
            *blocks,
            ("norm", self.norm),
            ("head", self.head),
        ]
