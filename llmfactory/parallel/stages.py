"""The layers of a model dealt to the stages of a pipeline, and the parameters that stages share.

A stage is a slice of the model's steps: about as many layers for each, and what stands between two layers goes with the later one.
Every process keeps the whole tree of modules, so that names stay, but only the parameters that its own stages use. A parameter that
several processes use (a tied embedding, a bias of all layers, layers with the same weights) stands on each of them; what each finds
as its gradient is a part of the whole, so the parts are added up, and the norm counts it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmfactory.parallel.mesh import World
from llmfactory.parallel.schedule import stages_of
from llmfactory.parallel.spec import Mesh
from llmfactory.parallel.weights import local


class Step(Protocol):
    """What cutting asks of a step of a model."""

    @property
    def modules(self) -> tuple[nn.Module, ...]: ...
    @property
    def weights(self) -> tuple[nn.Parameter, ...]: ...
    @property
    def layer(self) -> bool: ...


def slices(steps: Sequence[Step], n_stages: int) -> list[slice]:
    """The steps of each stage."""
    layers = [number for number, step in enumerate(steps) if step.layer]
    if len(layers) < n_stages:
        raise ValueError(f"{len(layers)} layers cannot be dealt to {n_stages} stages")
    ends = [layers[len(layers) * stage // n_stages - 1] + 1 for stage in range(1, n_stages)]
    return [slice(start, end) for start, end in zip([0, *ends], [*ends, len(steps)], strict=True)]


class Stages:
    """What this process has of a model's stages. Made of the whole model, before anything else cuts it; `drop` comes after."""

    def __init__(self, model: Any, world: World, layout: Mesh) -> None:
        self.model, self.world = model, world
        p, v = world.degrees["pp"], layout.stages_per_process
        self.rank, self.group = world.place("pp"), world.groups["pp"]
        self.slices = slices(model.steps(), p * v)
        used = [_used(model, part, last=number == p * v - 1) for number, part in enumerate(self.slices)]
        by_rank = [set().union(*(used[stage] for stage in stages_of(rank, p, v, layout.schedule))) for rank in range(p)]
        names = [name for name, _ in model.named_parameters()]
        self.owners = {name: tuple(rank for rank in range(p) if name in by_rank[rank]) or (p - 1,) for name in names}
        """By parameter, the processes of a pipeline that have it; what no step uses stays with the last stage's."""
        self._groups = self._sharing()

    def drop(self) -> None:
        """Let go of the parameters that no stage of this process uses."""
        for name, owners in self.owners.items():
            if self.rank not in owners:
                path, _, attribute = name.rpartition(".")
                self.model.get_submodule(path)._parameters[attribute] = None

    def counted(self, name: str) -> bool:
        """Whether this process is the one that counts a parameter where each is to count once."""
        return self.owners[name][0] == self.rank

    @torch.no_grad()
    def add_up(self) -> None:
        """Gradients of shared parameters become the sums of what their owners found."""
        for name, parameter in self.model.named_parameters():
            group = self._groups.get(self.owners[name])
            if group is None or not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(local(parameter.grad), group=group)

    def _sharing(self) -> dict[tuple[int, ...], dist.ProcessGroup]:
        """A process group for each set of owners; made by all processes in the same order."""
        assert self.world.dense is not None
        pipelines = self.world.dense.mesh.flatten(1).T.tolist()  # each the ranks of one pipeline
        found = {}
        for owners in sorted({owners for owners in self.owners.values() if len(owners) > 1}):
            if len(owners) == self.group.size():
                found[owners] = self.group
                continue
            group, _ = dist.new_subgroups_by_enumeration(  # type: ignore[no-untyped-call]
                [[ranks[owner] for owner in owners] for ranks in pipelines]
            )
            if self.rank in owners:
                found[owners] = group
        return found


def _used(model: Any, part: slice, last: bool) -> set[str]:
    """Names of the parameters that a stage uses."""
    found: list[Tensor] = []
    for step in model.steps()[part]:
        found += step.weights
        for module in step.modules:
            found += module.parameters()
    if last:
        found += [*model.head.parameters(), model.head.weight]
    places = {id(parameter) for parameter in found}
    return {name for name, parameter in model.named_parameters() if id(parameter) in places}
