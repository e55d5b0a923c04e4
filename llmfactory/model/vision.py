"""A vision encoder (Dosovitskiy et al. 2021): squares of a picture as a sequence, with learned places, through a stack of blocks.

Legend: N pictures, P vectors of each, D width of the stack.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context, FullMask
from llmfactory.core.sharding import Parameter
from llmfactory.model.part import Part
from llmfactory.model.spec import VisionSpec
from llmfactory.model.tower import Tower, frame_of


class VisionEncoder(Part):
    """pictures [N, C, Y, X] -> features [N, P, D]."""

    def __init__(self, spec: VisionSpec, std: float) -> None:
        super().__init__()
        self.used, self.drops_class = spec.layers_used, not spec.keep_class
        frame = frame_of(spec, spec.dim, spec.embedding.n_vectors, std, causal=False, name="vision")
        self.embedding = spec.embedding.build(0, spec.dim, std)
        self.embedding_norm = frame.norm(spec.dim) if spec.embedding_norm else None
        self.dropout = nn.Dropout(spec.dropout)
        self.tower = Tower(spec, frame)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, images_NCYX: Tensor) -> Tensor:
        x_NPD = self.embedding(images_NCYX)
        # The place of a square follows from the picture itself, so no batch says it.
        places_1P = torch.arange(x_NPD.shape[1], device=x_NPD.device)[None]
        context = Context(places_1P, FullMask(x_NPD.shape[1], x_NPD.device))
        x_NPD = self.tower.position.embed(x_NPD, context)
        if self.embedding_norm is not None:
            x_NPD = self.embedding_norm(x_NPD)
        context = self.tower.position.prepare(context, x_NPD.dtype)
        x_NPD = self.dropout(x_NPD)
        for block in self.tower.blocks[: self.used]:
            x_NPD = block(x_NPD, context)
        if self.used is None:
            x_NPD = self.tower.norm(x_NPD)
        return x_NPD[:, 1:] if self.drops_class else x_NPD  # type: ignore[no-any-return]

    def chain(self, name: str) -> list[tuple[str, nn.Module]]:
        """Its modules in forward order; `name` is its own."""
        norm = [] if self.embedding_norm is None else [("embedding_norm", self.embedding_norm)]
        blocks = [(f"tower.blocks.{layer}", block) for layer, block in enumerate(self.tower.blocks)]
        first = [("embedding", self.embedding), ("tower.position", self.tower.position), *norm]
        return [(f"{name}.{inner}", module) for inner, module in [*first, *blocks, ("tower.norm", self.tower.norm)]]
