"""Rules about who computes the operations of a model's parts."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.kernel import Kernel, interpreted
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.spec import DeepSpeed, Mesh, Offload
from llmfactory.run.spec import Device
from llmfactory.stage.spec import TrainingSpec

PLAIN = "trainer.kernel=torch"


def triton_compiles_for_gpus(job: Job) -> Iterator[Problem]:
    """Where no device is named, the run finds out."""
    if job.trainer.device is not Device.cpu or interpreted():
        return
    reason = "Triton compiles for GPUs only, but trainer.device=cpu (its interpreter, TRITON_INTERPRET=1, is for tests)"
    if job.trainer.kernel is Kernel.triton:
        yield Problem("trainer.kernel", "triton", reason, PLAIN)
    if isinstance(job.optim, Adamw) and job.optim.kernel is Kernel.triton:
        yield Problem("optim.kernel", "triton", reason, "optim.kernel=torch")


def one_compiler_at_a_time(job: Job) -> Iterator[Problem]:
    """`auto` gives way to the compiler of the whole model by itself."""
    kernel = job.trainer.kernel
    if kernel in (Kernel.triton, Kernel.compile) and job.trainer.compile and isinstance(job.stage, TrainingSpec):
        reason = "trainer.compile=true writes kernels for all of the model, and cannot look into those of single parts"
        yield Problem("trainer.kernel", kernel.name, reason, "trainer.kernel=auto")


def kernels_are_proven_on_this_layout(job: Job) -> Iterator[Problem]:
    """They work on the tensors of one process; in Triton, training is the same under every layout of ours
    (tests/distributed/test_kernels.py)."""
    processes = job.launch.world()
    if job.trainer.kernel is Kernel.compile and processes > 1:
        reason = f"operations that are compiled one by one are proven in a single process only, and there are {processes}"
        yield Problem("trainer.kernel", "compile", reason, PLAIN)
        return
    if not isinstance(job.parallel, DeepSpeed):
        return
    reason = "kernels of single parts are not proven under DeepSpeed's engine"
    if job.trainer.kernel is not Kernel.torch:
        yield Problem("trainer.kernel", job.trainer.kernel.name, reason, PLAIN)
    if isinstance(job.optim, Adamw) and job.optim.kernel is not Kernel.torch:
        yield Problem("optim.kernel", job.optim.kernel.name, reason, "optim.kernel=torch")


def kernels_step_where_weights_are(job: Job) -> Iterator[Problem]:
    layout = job.parallel
    if not isinstance(layout, Mesh) or layout.offload is Offload.none or not isinstance(job.optim, Adamw):
        return
    if job.optim.kernel is Kernel.triton:
        reason = f"parallel.offload={layout.offload.name} has the step computed on the CPU, and Triton compiles for GPUs only"
        yield Problem("optim.kernel", "triton", reason, "optim.kernel=torch")


def counts_have_no_kernels(job: Job) -> Iterator[Problem]:
    if job.model.graph == "counts" and job.trainer.kernel is not Kernel.torch:
        reason = "this model is fitted by counting: it has no operation that several kernels compute"
        yield Problem("trainer.kernel", job.trainer.kernel.name, reason, PLAIN)
