"""A stack of blocks with one position part and a last norm: what decoders and encoders are made of."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Frame, Site
from llmfactory.model.part import Part, visited
from llmfactory.model.tower_spec import TowerSpec


def frame_of(spec: TowerSpec, dim: int, max_positions: int, std: float, causal: bool, name: str = "") -> Frame:
    """What the blocks of a stack are told."""
    branch_scale = spec.block.branch_scale(spec.n_layers)
    out_std = std * branch_scale
    return Frame(
        dim=dim,
        n_layers=spec.n_layers,
        n_heads=spec.attention.n_heads,
        head_dim=spec.attention.head_width(dim),
        max_positions=max_positions,
        std=std,
        out_std=out_std / (2 * spec.n_layers) ** 0.5 if spec.depth_scaled_init else out_std,
        causal=causal,
        norm=spec.norm.build,
        name=name,
        branch_scale=branch_scale,
    )


class Tower(Part):
    """[B, T, D] -> [B, T, D]."""

    def __init__(self, spec: TowerSpec, frame: Frame) -> None:
        super().__init__()
        self.fill(spec, frame)

    def fill(self, spec: TowerSpec, frame: Frame, width: int | None = None) -> None:
        """Make the parts; a flat skeleton is its own tower. `width`: of position vectors; None: the stack's."""
        self.position = spec.position.build(frame if width is None else replace(frame, dim=width))
        self.repeats = spec.repeats()
        blocks = []
        for layer, kind in list(enumerate(spec.kinds()))[:: self.repeats]:
            site = Site(frame, layer, self.position)
            cross = None if spec.cross is None else spec.cross.build(site)
            blocks.append(spec.block.build(site, kind.attention.build(site), kind.ffn.build(site), cross, spec.dropout))
        self.blocks = nn.ModuleList(blocks)
        self.norm = spec.block.last_norm(frame)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def blocks_visited(self) -> float:
        """Matrix elements of all layers that a token is multiplied by."""
        return self.repeats * visited(self.blocks)

    def layers(self) -> list[tuple[str, nn.Module]]:
        """The block of each layer, by name."""
        return [(f"blocks.{number}", block) for number, block in enumerate(self.blocks) for _ in range(self.repeats)]

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        context = self.position.prepare(context, x_BTD.dtype)
        for block in self.blocks:
            for _ in range(self.repeats):
                x_BTD = block(x_BTD, context)
        return self.norm(x_BTD)  # type: ignore[no-any-return]
