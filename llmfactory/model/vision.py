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
from llmfactory.model.steps import Pass, Step
from llmfactory.model.tower import Tower, frame_of

FEATURES = "features"
"""Name of what the encoder leaves for the connector."""


class VisionEncoder(Part):
    """pictures [N, C, Y, X] -> features [N, P, D], as steps."""

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

    def steps(self) -> list[Step]:
        """From `context.images` to what is carried as `features`; nothing where there are no pictures."""
        maps = [module for module in (self.embedding_norm, self.dropout) if module is not None]

        def enter(going: Pass) -> None:
            images_BNCYX = going.context.images
            if images_BNCYX is not None:
                x_NPD = self.embedding(images_BNCYX.flatten(0, 1))
                going.carried[FEATURES] = self.tower.enter(x_NPD, _places(x_NPD), maps)

        def context(going: Pass) -> Context:
            return _places(going.carried[FEATURES])

        def leave(going: Pass) -> None:
            x_NPD = going.carried.get(FEATURES)
            if x_NPD is not None:
                x_NPD = self.tower.leave(x_NPD, normalize=self.used is None)
                going.carried[FEATURES] = x_NPD[:, 1:] if self.drops_class else x_NPD

        layers = self.tower.through(FEATURES, context)
        used = len(layers) if self.used is None else self.used
        idle = [module for step in layers[used:] for module in step.modules]  # published weights have them, nothing runs them
        first = Step((self.embedding, self.tower.position, *maps), enter)
        return [first, *layers[:used], Step((*idle, self.tower.norm), leave)]


def _places(x_NPD: Tensor) -> Context:
    """The place of a square follows from the picture itself, so no batch says it."""
    places_1P = torch.arange(x_NPD.shape[1], device=x_NPD.device)[None]
    return Context(places_1P, FullMask(x_NPD.shape[1], x_NPD.device))
