"""A trained model that lies over several processes: measured as it lies, put together only where something needs it whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmfactory.checkpoint.tensors import all_tensors, size_in_bytes, united
from llmfactory.config.spec import Job
from llmfactory.model.count import parameters
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.bench import free_bytes
from llmfactory.parallel.shard import reshard
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.parallel.weights import assemble
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.stage.evaluate import Measure
from llmfactory.stage.training import TrainingStage

ROOM = 0.5
"""Share of the memory that is free which a whole model may take: whoever uses it needs some too."""


class LaidOut:
    """All methods are called by every process. `measure`: the objective on all held-out rows."""

    def __init__(
        self,
        job: Job,
        stage: TrainingStage,
        formats: MeshPrecision,
        strategy: MeshStrategy,
        measure: Callable[[], Measure | None],
    ) -> None:
        self.job, self.stage, self.formats, self.strategy, self._measure = job, stage, formats, strategy, measure
        self._whole: Skeleton | None = None

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return parameters(whole_on_meta(self.job, self.stage, self.formats))

    def measure(self) -> Measure | None:
        """The objective on all held-out rows; None: there are none."""
        return self._measure()

    def too_large(self, everywhere: bool) -> str | None:
        """Why the whole model cannot stand beside the training state, on rank 0 or on all processes; None: it can."""
        world = self.strategy.world
        needed = size_in_bytes(united(self._pieces(), world))
        together = world.local_size if everywhere and world.device.type == "cpu" else 1
        free = free_bytes(world.device) if everywhere or world.rank == 0 else None
        least = min(one for one in world.gather(free) if one is not None)
        if needed * together <= ROOM * least:
            return None
        copies = f"{together} copies of the whole model take" if together > 1 else "the whole model takes"
        return f"{copies} {needed * together / 2**30:.2f} GiB, too much for the {least / 2**30:.2f} GiB that are free"

    def whole(self, everywhere: bool) -> Skeleton | None:
        """A plain module with the trained weights, in evaluation mode; not `everywhere`: on rank 0, None elsewhere."""
        world = self.strategy.world
        if self._whole is None:
            keep = everywhere or world.rank == 0
            model = whole_on_meta(self.job, self.stage, self.formats)
            if keep:
                model.to_empty(device=world.device)
            places = all_tensors(model)

            def fill(name: str, tensor: Tensor) -> None:
                if keep:
                    places.pop(name).copy_(tensor)

            assemble(self._pieces(), world, fill)
            assert not (keep and places), f"no process has {', '.join(places)}"
            if not everywhere:
                return model.eval() if keep else None
            self._whole = model.eval()
        return self._whole

    def _pieces(self) -> dict[str, Tensor]:
        reshard(self.stage.root)
        model, _ = self.strategy.whole(self.stage.model, None, everywhere=False)
        return all_tensors(model)


def whole_on_meta(job: Job, stage: TrainingStage, formats: MeshPrecision) -> Skeleton:
    """A plain module like the one that is trained, with its adapters and companions, on the meta device."""
    with torch.device("meta"):
        model = job.model.build()
        job.peft.apply(model)
        stage.objective.equip(model)
    formats.convert_module(model)
    return model
