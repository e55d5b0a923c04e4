"""Catalogue of parallel layouts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from llmfactory.core.errors import MissingExtra, Problem
from llmfactory.core.spec import Spec, above, at_least, between


class Backend(Enum):
    """Communication libraries of torch.distributed."""

    auto = "nccl where every process has a GPU, gloo otherwise"
    gloo = "CPU, and GPU tensors through the CPU"
    nccl = "NVIDIA GPUs"
    mpi = "whatever torch was built with; the wheels are not"


class Zero(Enum):
    """What is cut over the sharding data-parallel processes (Rajbhandari et al. 2020, section 5)."""

    optimizer = "ZeRO-1: optimizer state; gradients are summed once a step, weights gathered once a step"
    gradients = "ZeRO-2: gradients too: they are cut after every micro-batch"
    parameters = "ZeRO-3, FSDP: weights too: they are gathered for each use"


class ContextMethod(Enum):
    """How attention sees the keys of other processes when rows are cut along their length."""

    ring = "keys and values go round, scores are merged piece by piece (Liu et al. 2023)"
    ulysses = "heads are dealt out instead of tokens, by two all-to-alls (Jacobs et al. 2023)"
    gather = "keys and values of all processes are gathered (Grattafiori et al. 2024, section 3.3.2)"


class Schedule(Enum):
    """In which order a pipeline's stages work on micro-batches."""

    gpipe = "all forwards, then all backwards (Huang et al. 2019)"
    one_f_one_b = "one forward, one backward, with a flush (Narayanan et al. 2021, PipeDream-Flush)"
    interleaved = "1F1B over several stages a process (Narayanan et al. 2021b, section 2.2)"
    zero_bubble = "interleaved, the weights' part of each backward fills the gaps (Qi et al. 2023)"
    zero_bubble_v = "the same, stages laid out as a V (Qi et al. 2023, ZB-V)"


class TensorForm(Enum):
    """How a matrix is cut over the tensor-parallel group."""

    one_d = "along one dimension, in pairs of column and row cuts (Shoeybi et al. 2019)"
    summa = "along both, on a square grid of processes; activations are cut along both too (Xu et al. 2021, Optimus)"


class Offload(Enum):
    """What leaves the device between its uses."""

    none = "nothing"
    cpu = "weights, gradients and optimizer state live in the host's memory (ZeRO-Offload)"
    disk = "weights and optimizer state live in memory-mapped files (ZeRO-Infinity)"


@dataclass(kw_only=True, slots=True)
class ParallelSpec(Spec):
    """Base of the layouts."""

    def insist_installed(self) -> None:
        """Raise MissingExtra if the layout needs a package that is not there."""

    def mesh(self) -> Mesh:
        """How the processes are arranged."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of parallel")

    def degrees_for(self, world: int) -> dict[str, int]:
        """Size of each axis of the device mesh when `world` processes run; their product is the world it needs."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of parallel")


@dataclass(kw_only=True, slots=True)
class Mesh(ParallelSpec):
    """Processes arranged on the axes of one device mesh; each preset is a choice of degrees.

    The product of all degrees but `ep` is the number of processes. Neighbours are, from the nearest: tensor, context, sharding,
    replicating, pipeline.
    """

    dp_replicate: int | None = 1
    """Data-parallel copies of the whole model; None: as many as the other degrees leave."""
    dp_shard: int | None = 1
    """Data-parallel processes that share what `zero` says; None: as many as the other degrees leave."""
    cp: int = 1
    """Context parallel: pieces that each row is cut into along its length."""
    tp: int = 1
    """Tensor parallel: pieces that matrices are cut into."""
    pp: int = 1
    """Pipeline parallel: processes that the layers are dealt to."""
    ep: int = 1
    """Expert parallel: groups that experts are dealt to; taken from the data- and context-parallel processes, not multiplied."""
    zero: Zero = Zero.parameters
    """What `dp_shard` cuts."""
    sequence_parallel: bool = False
    """Cut what lies between tensor-parallel matrices along the row over the tensor-parallel group (Korthikanti et al. 2022)."""
    loss_parallel: bool = False
    """Compute the loss from logits that stay cut along the vocabulary."""
    tensor_form: TensorForm = TensorForm.one_d
    """How `tp` cuts matrices."""
    context_method: ContextMethod = ContextMethod.ring
    """How `cp` computes attention."""
    schedule: Schedule = Schedule.one_f_one_b
    """Order of the pipeline's work."""
    virtual_stages: int = 2
    """Stages of each process under the interleaved and zero-bubble schedules."""
    recompute: bool = False
    """Keep the input of each block only and compute the rest again in the backward pass (Chen et al. 2016)."""
    recompute_every: int = 1
    """Do so with every n-th block, from the first one on; 1: with all."""
    recompute_keep: list[str] = field(default_factory=list)
    """Operations whose outputs are kept all the same: `products` (of matrices), `attention`, or names such as `aten.mm`."""
    recompute_budget_mb: float | None = None
    """Do so with as few blocks as let all of them keep at most so many megabytes (10^6 bytes) of a micro-batch; None: with all."""
    offload: Offload = Offload.none
    """What leaves the device between its uses."""
    offload_dir: str | None = None
    """Where `offload=disk` keeps its files; None: in the run's folder."""
    backend: Backend = Backend.auto
    """Communication library."""
    timeout_s: float = 600.0
    """Seconds after which a collective operation that waits for a lost process fails."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "dp_replicate", "dp_shard", "cp", "tp", "pp", "ep", "virtual_stages")
        yield from at_least(self, 1, "recompute_every")
        yield from above(self, 0.0, "timeout_s", repair=600)
        yield from above(self, 0.0, "recompute_budget_mb", repair=1000)
        wrong = [name for name in self.recompute_keep if name not in ("products", "attention") and name.count(".") != 1]
        if wrong:
            reason = f"{', '.join(wrong)} is neither products nor attention, nor <library>.<operation> as in aten.mm"
            yield Problem("recompute_keep", self.recompute_keep, reason, "recompute_keep=[products,attention]")
        if self.recompute_budget_mb is not None and self.recompute_every > 1:
            reason = "says nothing: recompute_budget_mb chooses the blocks"
            yield Problem("recompute_every", self.recompute_every, reason, "recompute_every=1")
        if self.dp_replicate is None and self.dp_shard is None:
            yield Problem("dp_shard", None, "only one of dp_replicate and dp_shard can be what is left", "dp_shard=1")

    def mesh(self) -> Mesh:
        return self

    def degrees_for(self, world: int) -> dict[str, int]:
        fixed = self.cp * self.tp * self.pp * (self.dp_replicate or 1) * (self.dp_shard or 1)
        left = max(1, world // max(1, fixed))
        return {
            "pp": self.pp,
            "dp_replicate": left if self.dp_replicate is None else self.dp_replicate,
            "dp_shard": left if self.dp_shard is None else self.dp_shard,
            "cp": self.cp,
            "tp": self.tp,
        }

    def data_degree(self, world: int) -> int:
        """Into how many shares the rows of a step are dealt."""
        degrees = self.degrees_for(world)
        return degrees["dp_replicate"] * degrees["dp_shard"]

    def fills_pipeline(self, micro_batches: int) -> bool:
        """Whether so many micro-batches a process are enough for the schedule; looped ones go through them in rounds of `pp`."""
        looped = self.schedule in (Schedule.interleaved, Schedule.zero_bubble)
        return self.pp == 1 or (micro_batches >= self.pp and not (looped and micro_batches % self.pp))

    @property
    def stages_per_process(self) -> int:
        """Stages of each process of a pipeline."""
        looped = (Schedule.interleaved, Schedule.zero_bubble)
        return self.virtual_stages if self.schedule in looped else 2 if self.schedule is Schedule.zero_bubble_v else 1


@dataclass(kw_only=True, slots=True)
class Auto(ParallelSpec):
    """The fastest layout that fits `hardware`, found just before the job starts (`parallel/plan/search.py`); the run's config then
    names it. `trainer.micro_batch_size` is chosen too where it is null. Stages that do not train run on copies."""

    backend: Backend = Backend.auto
    """Communication library."""
    timeout_s: float = 600.0
    """Seconds after which a collective operation that waits for a lost process fails."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "timeout_s", repair=600)

    def mesh(self) -> Mesh:
        return Mesh(dp_replicate=None, backend=self.backend, timeout_s=self.timeout_s)

    def degrees_for(self, world: int) -> dict[str, int]:
        return {"any": world}


@dataclass(kw_only=True, slots=True)
class DeepSpeed(ParallelSpec):
    """DeepSpeed's own ZeRO engine over all processes, each with its share of a step's rows (Rajbhandari et al. 2020, 2021)."""

    stage: int
    """1: optimizer state is cut; 2: gradients too; 3: weights too."""
    offload: Offload = Offload.none
    """What leaves the device between its uses, `none` or `cpu`; with stage 3 weights as well as optimizer state."""
    backend: Backend = Backend.auto
    """Communication library."""
    timeout_s: float = 600.0
    """Seconds after which a collective operation that waits for a lost process fails."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 1, 3, "stage")
        yield from above(self, 0.0, "timeout_s", repair=600)
        if self.offload is Offload.disk:
            reason = "DeepSpeed's way to a disk is not proven to make our steps (parallel=offload parallel.offload=disk is)"
            yield Problem("offload", "disk", reason, "offload=cpu")

    def insist_installed(self) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise MissingExtra("deepspeed", "deepspeed", "parallel=deepspeed_*")

    def mesh(self) -> Mesh:
        return Mesh(dp_replicate=None, backend=self.backend, timeout_s=self.timeout_s)

    def degrees_for(self, world: int) -> dict[str, int]:
        return self.mesh().degrees_for(world)
