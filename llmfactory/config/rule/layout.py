"""Rules about processes and what they share."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llmfactory.config.rule.degrees import degrees_of
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import walk
from llmfactory.launch.spec import Local, MachinesSpec
from llmfactory.model.ffn.spec import BalanceOver, MoeSpec
from llmfactory.parallel.spec import Backend, Mesh, Zero
from llmfactory.run.spec import Device
from llmfactory.stage.spec import Prepare, TrainingSpec


def world_is_the_product_of_degrees(job: Job) -> Iterator[Problem]:
    world = job.launch.world()
    if isinstance(job.stage, Prepare):  # its processes share tasks, not a model
        return
    degrees = job.parallel.degrees_for(world)
    product = math.prod(degrees.values())
    if product == world:
        return
    shown = " x ".join(f"{name} {size}" for name, size in degrees.items())
    processes = f"launch starts {world} process{'es' if world > 1 else ''}"
    if product == 1:
        yield Problem("parallel.dp_replicate", 1, f"{processes}, but the layout is made for one", "parallel=ddp")
    else:
        repair = f"launch=local launch.processes={product}"
        if isinstance(job.launch, MachinesSpec):
            fits = product % job.launch.nodes == 0
            nodes, each = (job.launch.nodes, product // job.launch.nodes) if fits else (1, product)
            repair = f"launch.nodes={nodes} launch.processes={each}"
        yield Problem(
            "parallel.dp_replicate", degrees["dp_replicate"], f"{processes}, but the layout ({shown}) needs {product}", repair
        )


def every_process_gets_a_row(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, TrainingSpec):
        return
    degrees = job.parallel.degrees_for(job.launch.world())
    ranks = math.prod(size for name, size in degrees.items() if name.startswith("dp_"))
    if job.trainer.batch_size < ranks:
        reason = f"the rows of a step are shared out among {ranks} data-parallel processes"
        yield Problem("trainer.batch_size", job.trainer.batch_size, reason, f"trainer.batch_size={ranks}")


def pipelines_gather_once_a_step(job: Job) -> Iterator[Problem]:
    """Between the micro-batches of a stage FSDP would only gather what it has just given back."""
    layout = job.parallel
    degrees = degrees_of(job)
    if isinstance(layout, Mesh) and layout.pp > 1 and degrees["dp_shard"] > 1 and layout.zero is not Zero.optimizer:
        reason = (
            "a pipeline gathers weights once a step and reduces gradients once a step, so that only optimizer state stays cut"
        )
        yield Problem("parallel.zero", layout.zero.name, reason, "parallel.zero=optimizer")


def nccl_needs_gpus(job: Job) -> Iterator[Problem]:
    if job.parallel.mesh().backend is Backend.nccl and job.trainer.device is Device.cpu:
        yield Problem("parallel.backend", "nccl", "NCCL moves data between GPUs, but trainer.device=cpu", "parallel.backend=auto")


def one_number_of_threads(job: Job) -> Iterator[Problem]:
    threads = job.launch.threads if isinstance(job.launch, Local) else None
    if threads is not None and job.trainer.threads is not None and threads != job.trainer.threads:
        reason = f"launch.threads={threads} says otherwise"
        yield Problem("trainer.threads", job.trainer.threads, reason, "trainer.threads=null")


def balance_over_the_batch_sees_all_of_it(job: Job) -> Iterator[Problem]:
    """What is no sum over rows would be another number for each cut of the step."""
    if not isinstance(job.stage, TrainingSpec):
        return
    degrees = job.parallel.degrees_for(job.launch.world())
    ranks = math.prod(size for name, size in degrees.items() if name.startswith("dp_"))
    share = math.ceil(job.trainer.batch_size / ranks)
    pieces = math.ceil(share / (job.trainer.micro_batch_size or share))
    for path, part in walk(job.model, "model"):
        if isinstance(part, MoeSpec) and part.balance and part.balance_over is BalanceOver.batch and (ranks > 1 or pieces > 1):
            cut = f"{ranks} data-parallel processes" if ranks > 1 else f"{pieces} micro-batches (trainer.micro_batch_size)"
            reason = f"the rows of a step are cut into {cut}, and none of them sees the whole batch"
            yield Problem(f"{path}.balance_over", "batch", reason, f"{path}.balance_over=sequence")
