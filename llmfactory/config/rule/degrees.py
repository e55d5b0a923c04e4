"""What rules about layouts share: the degrees of a job, and a repair that changes some of them and still composes."""

from __future__ import annotations

from llmfactory.config.spec import Job
from llmfactory.parallel.spec import Mesh


def degrees_of(job: Job) -> dict[str, int]:
    """Sizes of the mesh's axes and of `ep`; nothing where the layout is no mesh."""
    if not isinstance(job.parallel, Mesh):
        return {}
    return {**job.parallel.degrees_for(job.launch.world()), "ep": job.parallel.ep}


def with_degrees(job: Job, **degrees: int) -> str:
    """Overrides that set these degrees and let data parallelism take the processes that they leave."""
    assert isinstance(job.parallel, Mesh)
    layout = job.parallel
    found = [f"parallel.{axis}={size}" for axis, size in degrees.items()]
    if layout.dp_replicate is not None and layout.dp_shard is not None:
        found.append("parallel.dp_replicate=null")
    fixed = {axis: getattr(layout, axis) for axis in ("cp", "tp", "pp")} | degrees
    world, product = job.launch.world(), fixed["cp"] * fixed["tp"] * fixed["pp"]
    ranks = max(1, world // product)
    if job.trainer.batch_size < ranks:
        found.append(f"trainer.batch_size={ranks}")
    return " ".join(found)
