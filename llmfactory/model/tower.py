"""A stack of blocks with one position part and a last norm: what decoders and encoders are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.sharding import Parameter
from llmfactory.model.frame import Frame, Site
from llmfactory.model.part import Part, visited
from llmfactory.model.steps import Pass, Step
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
    """[B, T, D] -> [B, T, D], as steps."""

    cut: Callable[[Tensor], Tensor] | None = None
    """Applied to the first block's input: a layout's, to share out what lies between `enter` and `leave`; None: nothing."""
    join: Callable[[Tensor], Tensor] | None = None
    """Applied to the output, to undo `cut`."""

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

    def enter(self, x_BTD: Tensor, context: Context, maps: Sequence[nn.Module] = ()) -> Tensor:
        """What the first block reads: embeddings with position vectors, through `maps` one after the other."""
        x_BTD = self.position.embed(x_BTD, context)
        for module in maps:
            x_BTD = module(x_BTD)
        return x_BTD if self.cut is None else self.cut(x_BTD)

    def leave(self, x_BTD: Tensor, normalize: bool = True) -> Tensor:
        """The stack's output: the last block's, normalized unless said otherwise."""
        x_BTD = self.norm(x_BTD) if normalize else x_BTD
        return x_BTD if self.join is None else self.join(x_BTD)

    def through(self, name: str, context: Callable[[Pass], Context]) -> list[Step]:
        """A step for each layer, which changes what is carried under `name`; none where nothing is. `context`: the stack's."""

        def run(block: nn.Module, going: Pass) -> None:
            x_BTD = going.carried.get(name)
            if x_BTD is None:
                return
            prepared = going.prepared.get(name)
            if prepared is None:
                prepared = going.prepared[name] = self.position.prepare(context(going), x_BTD.dtype)
            going.carried[name] = block(x_BTD, prepared)

        shared = tuple(self.position.parameters()) if self.position.is_shared else ()
        return [Step((block,), partial(run, block), shared, layer=True) for block in self.blocks for _ in range(self.repeats)]
