"""Rules about what DeepSpeed's engine does in the place of ours."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem, walk
from llmfactory.model.ffn.spec import MoeSpec
from llmfactory.parallel.spec import DeepSpeed
from llmfactory.precision.spec import Bf16True, EightBitSpec, Fp16Mixed, Fp64
from llmfactory.stage.spec import TrainingSpec


def deepspeed_shares_over_several(job: Job) -> Iterator[Problem]:
    if isinstance(job.parallel, DeepSpeed) and isinstance(job.stage, TrainingSpec) and job.launch.world() == 1:
        reason = "ZeRO cuts optimizer state over several processes, and launch starts one"
        yield Problem("parallel.stage", job.parallel.stage, reason, "launch=local launch.processes=2")


def deepspeed_keeps_float32(job: Job) -> Iterator[Problem]:
    """It would turn float64 into float32, and it keeps a loss scale of its own."""
    if not isinstance(job.parallel, DeepSpeed) or not isinstance(job.stage, TrainingSpec):
        return
    if isinstance(job.precision, Fp64):
        yield Problem("precision", "fp64", "DeepSpeed's engine keeps weights in float32 or less", "precision=fp32")
    elif isinstance(job.precision, Fp16Mixed):
        yield Problem("precision", "fp16_mixed", "DeepSpeed's engine knows nothing of our loss scale", "precision=bf16_mixed")
    elif isinstance(job.precision, (Bf16True, EightBitSpec)):
        reason = "nothing shows that DeepSpeed's engine makes the same steps with it; our own layouts do"
        yield Problem("precision", stem(type(job.precision)), reason, "precision=bf16_mixed")


def deepspeed_is_not_compiled(job: Job) -> Iterator[Problem]:
    if isinstance(job.parallel, DeepSpeed) and isinstance(job.stage, TrainingSpec) and job.trainer.compile:
        reason = "DeepSpeed's engine gathers weights in hooks of modules, which torch.compile would take apart"
        yield Problem("trainer.compile", True, reason, "trainer.compile=false")


def deepspeed_is_proven_for_decoders(job: Job) -> Iterator[Problem]:
    """Its engine has been compared with ours on decoders without experts; elsewhere nothing shows that the steps are the same."""
    if not isinstance(job.parallel, DeepSpeed) or not isinstance(job.stage, TrainingSpec):
        return
    mixture = any(isinstance(part, MoeSpec) for _, part in walk(job.model, "model"))
    if job.model.graph == "decoder" and not mixture:
        return
    kind = "a mixture of experts" if mixture else f"a model of the kind {job.model.graph}"
    reason = f"DeepSpeed's engine is proven on decoders without experts, and this is {kind}"
    yield Problem("parallel.stage", job.parallel.stage, reason, f"parallel=zero{job.parallel.stage}")
