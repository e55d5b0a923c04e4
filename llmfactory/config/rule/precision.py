"""Rules about number formats: what hardware, optimizers and layouts can do with them."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.optim.spec import Adafactor, Adam, Adamw, Lamb, Lion, Muon, Sgd
from llmfactory.parallel.spec import Mesh, Offload, TensorForm
from llmfactory.peft.spec import Qlora
from llmfactory.precision.spec import Bf16True, EightBitSpec, Fp8, Fp32
from llmfactory.run.spec import Device
from llmfactory.stage.spec import TrainingSpec

STEPS_PROVEN = (Adafactor, Adam, Adamw, Lamb, Lion, Muon, Sgd)
"""Optimizers whose step of a weight depends on nothing but this weight, its gradient and its state."""
WITHOUT_MAPS = ("counts", "words")
"""Kinds of models that have no linear map."""


def formats_have_their_hardware(job: Job) -> Iterator[Problem]:
    """Where the device is found at the start of the run, it is asked then (`precision/fp32.py`, `precision/fp8.py`)."""
    if job.trainer.device is not Device.cpu:
        return
    if isinstance(job.precision, Fp32) and job.precision.tf32:
        reason = "CPUs have no TF32, and trainer.device=cpu"
        yield Problem("precision.tf32", True, reason, "precision.tf32=false")
    if isinstance(job.precision, Fp8) and not job.precision.emulate:
        reason = "CPUs do not multiply float8 numbers, and trainer.device=cpu"
        yield Problem("precision.emulate", False, reason, "precision.emulate=true")


def narrow_weights_are_stepped_one_by_one(job: Job) -> Iterator[Problem]:
    if isinstance(job.precision, Bf16True) and isinstance(job.stage, TrainingSpec) and type(job.optim) not in STEPS_PROVEN:
        reason = f"the steps of this optimizer ({type(job.optim).__name__}) are not proven on weights that are kept in bfloat16"
        yield Problem("precision", "bf16_true", reason, "precision=bf16_mixed")


def formats_that_are_compiled_are_proven(job: Job) -> Iterator[Problem]:
    """The compiler may leave out a rounding that these products are about."""
    if isinstance(job.precision, EightBitSpec) and job.trainer.compile and isinstance(job.stage, TrainingSpec):
        reason = f"compiled blocks are not proven to round as precision={stem(type(job.precision))} says"
        yield Problem("trainer.compile", True, reason, "trainer.compile=false")


def narrow_weights_keep_their_state(job: Job) -> Iterator[Problem]:
    """It is widened for each step, which files mapped into memory are not made for."""
    if not isinstance(job.precision, Bf16True):
        return
    if isinstance(job.parallel, Mesh) and job.parallel.offload is Offload.disk and isinstance(job.stage, TrainingSpec):
        reason = "with precision=bf16_true the optimizer's state is made anew at each step, so it cannot live in files"
        yield Problem("parallel.offload", "disk", reason, "parallel.offload=cpu parallel.offload_dir=null")
    if isinstance(job.peft, Qlora):
        reason = "precision=bf16_true would round the scales of matrices in few bits"
        yield Problem("precision", "bf16_true", reason, "precision=bf16_mixed")


def eight_bits_have_maps_to_multiply(job: Job) -> Iterator[Problem]:
    if not isinstance(job.precision, EightBitSpec):
        return
    name, layout = stem(type(job.precision)), job.parallel
    if job.model.graph in WITHOUT_MAPS:
        reason = f"a model of the kind {job.model.graph} has no linear maps, whose products it is about"
    elif isinstance(job.peft, Qlora):
        reason = "the matrices of peft=qlora are in few bits already, and multiply in a way of their own"
    elif isinstance(layout, Mesh) and layout.tensor_form is TensorForm.summa and layout.tp > 1:
        reason = "parallel.tensor_form=summa multiplies pieces of matrices in a way of its own"
    else:
        return
    yield Problem("precision", name, reason, "precision=bf16_mixed")
