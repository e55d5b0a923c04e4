"""Rules about who computes the operations of a model's parts."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.rule.degrees import degrees_of
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.kernel.choice import Kernel, interpreted
from llmfactory.optim.spec import Adamw
from llmfactory.parallel.spec import DeepSpeed, Mesh, TensorForm
from llmfactory.run.spec import Device
from llmfactory.stage.spec import TrainingSpec

PLAIN = "trainer.kernel=torch"


def triton_compiles_for_gpus(job: Job) -> Iterator[Problem]:
    """Where no device is named, the run finds out."""
    if job.trainer.kernel is Kernel.triton and job.trainer.device is Device.cpu and not interpreted():
        reason = "Triton compiles for GPUs only, but trainer.device=cpu (its interpreter, TRITON_INTERPRET=1, is for tests)"
        yield Problem("trainer.kernel", "triton", reason, PLAIN)
    if isinstance(job.optim, Adamw) and job.optim.kernel is Kernel.triton:
        if job.trainer.device is Device.cpu and not interpreted():
            reason = "Triton compiles for GPUs only, but trainer.device=cpu (its interpreter, TRITON_INTERPRET=1, is for tests)"
            yield Problem("optim.kernel", "triton", reason, "optim.kernel=torch")
        elif isinstance(job.parallel, DeepSpeed):
            yield Problem("optim.kernel", "triton", "DeepSpeed's engine has steps of its own", "optim.kernel=torch")


def one_compiler_at_a_time(job: Job) -> Iterator[Problem]:
    """`auto` gives way to the compiler of the whole model by itself."""
    kernel = job.trainer.kernel
    if kernel in (Kernel.triton, Kernel.compile) and job.trainer.compile and isinstance(job.stage, TrainingSpec):
        reason = "trainer.compile=true writes kernels for all of the model, and cannot look into those of single parts"
        yield Problem("trainer.kernel", kernel.name, reason, "trainer.kernel=auto")


def kernels_are_proven_on_this_layout(job: Job) -> Iterator[Problem]:
    """They work on the tensors of one process: that this is right was shown under data and tensor parallelism."""
    kernel, layout = job.trainer.kernel, job.parallel
    if kernel is Kernel.torch:
        return
    if isinstance(layout, DeepSpeed):
        yield Problem("trainer.kernel", kernel.name, "kernels of single parts are not proven under DeepSpeed", PLAIN)
        return
    if isinstance(layout, Mesh) and layout.tp > 1 and layout.tensor_form is TensorForm.summa:
        yield Problem(
            "trainer.kernel", kernel.name, "kernels of single parts are not proven on grids of processes (summa)", PLAIN
        )
        return
    for axis in ("cp", "pp", "ep"):
        if (degree := degrees_of(job).get(axis, 1)) > 1:
            reason = f"kernels of single parts are proven under data and tensor parallelism only, but parallel.{axis}={degree}"
            yield Problem("trainer.kernel", kernel.name, reason, PLAIN)
            return


def counts_have_no_kernels(job: Job) -> Iterator[Problem]:
    if job.model.graph == "counts" and job.trainer.kernel is not Kernel.torch:
        reason = "this model is fitted by counting: it has no operation that several kernels compute"
        yield Problem("trainer.kernel", job.trainer.kernel.name, reason, PLAIN)
