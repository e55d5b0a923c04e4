"""Where processes stand: the groups of a layout, and which of them lie within a machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmfactory.parallel.plan.pieces import Piece, Where, Work
from llmfactory.parallel.schedule import stages_of
from llmfactory.parallel.spec import Mesh, Schedule

ORDER = ("pp", "copies", "shards", "tp")
"""Of the processes, neighbours last (`parallel/mesh.py`)."""


@dataclass(frozen=True, slots=True)
class Group:
    """Processes that talk to each other; those of one group stand `stride` apart."""

    name: str
    size: int
    stride: int

    def per_node(self, devices: int) -> int:
        """How many of it stand on one machine of so many devices."""
        if self.stride >= devices:
            return 1
        return min(self.size, max(1, devices // self.stride))

    def ranks(self, rank: int) -> list[int]:
        """The group that a process belongs to."""
        first = rank - rank // self.stride % self.size * self.stride
        return [first + number * self.stride for number in range(self.size)]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A layout on so many processes."""

    mesh: Mesh
    world: int
    pp: int
    replicas: int
    """`dp_replicate`."""
    dp_shard: int
    cp: int
    tp: int
    ep: int

    @property
    def copies(self) -> int:
        """Processes with the same piece of a weight: context parallel ones too, unless they share weights."""
        return self.replicas * (1 if self.dp_shard > 1 else self.cp)

    @property
    def shards(self) -> int:
        """Processes that a weight is cut over."""
        return self.dp_shard * self.cp if self.dp_shard > 1 else 1

    @property
    def expert_copies(self) -> int:
        return self.copies // self.ep if self.shards == 1 else self.copies

    @property
    def expert_shards(self) -> int:
        return max(1, self.shards // self.ep)

    @property
    def data(self) -> int:
        """Shares that the rows of a step are dealt into."""
        return self.replicas * self.dp_shard

    @property
    def stages_per_process(self) -> int:
        return self.mesh.stages_per_process if self.pp > 1 else 1

    @property
    def sequence_parallel(self) -> bool:
        return self.mesh.sequence_parallel and self.tp > 1

    def group(self, name: str) -> Group:
        """One of pp, copies, shards, cp, tp, ep, expert_copies, expert_shards."""
        tp, ep = self.tp, self.ep
        sizes = {
            "tp": (tp, 1),
            "cp": (self.cp, tp),
            "shards": (self.shards, tp),
            "copies": (self.copies, tp * self.shards),
            "pp": (self.pp, self.world // self.pp),
            "ep": (ep, tp),
            "expert_shards": (self.expert_shards, tp * ep),
            "expert_copies": (self.expert_copies, tp * ep * self.expert_shards),
        }
        return Group(name, *sizes[name])

    def losses_in_flight(self, micro_batches: int) -> int:
        """Micro-batches whose loss has been computed and not yet been back-propagated to the weights: of GPipe all, where the
        weights' part of backward passes waits as many as there are processes, else one."""
        if self.pp == 1:
            return 1
        waits = self.mesh.schedule in (Schedule.zero_bubble, Schedule.zero_bubble_v)
        return micro_batches if self.mesh.schedule is Schedule.gpipe else min(micro_batches, self.pp) if waits else 1

    def stages_of(self, process: int) -> list[int]:
        """Numbers of the stages that a process of a pipeline runs."""
        return stages_of(process, self.pp, self.stages_per_process, self.mesh.schedule) if self.pp > 1 else [0]


def arrange(mesh: Mesh, world: int) -> Arrangement:
    """The degrees of a layout on so many processes, which must be their product."""
    degrees = mesh.degrees_for(world)
    if math.prod(degrees.values()) != world:
        raise ValueError(f"{degrees} are no {world} processes")
    replicas, shard = degrees["dp_replicate"], degrees["dp_shard"]
    return Arrangement(mesh, world, degrees["pp"], replicas, shard, degrees["cp"], degrees["tp"], mesh.ep)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a process goes through its rows of a step."""

    rows: int
    """Of a micro-batch."""
    micro_batches: int


def pace(rows: int, data: int, micro_batch_size: int | None) -> Pace:
    """Of the process with most rows."""
    share = math.ceil(rows / data)
    size = min(share, micro_batch_size or share)
    return Pace(size, math.ceil(share / size))


def stages(work: Work, count: int) -> list[list[Piece]]:
    """The pieces of each stage of a pipeline, as `parallel/stages.py` deals them: about as many layers each, what stands between two
    layers goes with the later one, what follows the last one and the head with the last stage."""
    layers = [number for number, piece in enumerate(work.pieces) if piece.where is Where.layer]
    ends = [layers[len(layers) * stage // count - 1] + 1 for stage in range(1, count)]
    return [list(work.pieces[start:end]) for start, end in zip([0, *ends], [*ends, len(work.pieces)], strict=True)]


def in_flight(process: int, pp: int, mesh: Mesh, micro_batches: int) -> float:
    """Micro-batches whose activations a process holds at most, each of all of its stages.

    GPipe holds all. 1F1B holds as many as there are stages from this one to the last (Narayanan et al. 2021a). Interleaved, the
    warm-up is 2 (pp - process - 1) + (stages - 1) pp chunks, one stage each, and one more is under way (Narayanan et al. 2021b,
    section 2.2). Where the weights' part of backward passes waits, so do activations: all processes hold pp micro-batches (Qi et
    al. 2023, section 4). Tests compare with the tables of `parallel/schedule.py`.
    """
    if pp == 1:
        return 1.0
    turns = mesh.stages_per_process
    if mesh.schedule is Schedule.gpipe:
        return float(micro_batches)
    if mesh.schedule is Schedule.one_f_one_b:
        return float(min(micro_batches, pp - process))
    if mesh.schedule in (Schedule.zero_bubble, Schedule.zero_bubble_v):
        return float(min(micro_batches, pp))
    chunks = 2 * (pp - process - 1) + (turns - 1) * pp + 1
    return min(turns * micro_batches, chunks) / turns


def bubble(pp: int, mesh: Mesh, micro_batches: int) -> float:
    """Idle time over working time of a pipeline whose stages take the same time.

    (pp - 1) / m for GPipe and 1F1B; interleaving divides it by the stages of a process (Narayanan et al. 2021b, equation 2). The
    weights' part of backward passes, a third of the work, fills two thirds of what is left; as a V it fills all (Qi et al. 2023,
    table 1, with equal times).
    """
    if pp == 1:
        return 0.0
    idle = (pp - 1) / micro_batches
    if mesh.schedule is Schedule.interleaved:
        return idle / mesh.stages_per_process
    if mesh.schedule is Schedule.zero_bubble:
        return idle / mesh.stages_per_process / 3
    return 0.0 if mesh.schedule is Schedule.zero_bubble_v else idle
