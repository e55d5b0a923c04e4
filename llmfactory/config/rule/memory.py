"""Rules about what saves memory: recomputation, and optimizer steps within the backward pass."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.guard.spec import None_ as NoGuard
from llmfactory.parallel.spec import Mesh
from llmfactory.peft.spec import Adalora
from llmfactory.precision.spec import Fp16Mixed
from llmfactory.stage.anchor.spec import None_ as NoAnchor
from llmfactory.stage.spec import Pretrain, RlSpec, TrainingSpec


def budgets_are_of_one_micro_batch(job: Job) -> Iterator[Problem]:
    """A pipeline has several micro-batches under way, and stages that do not know of each other's blocks."""
    layout = job.parallel
    if isinstance(layout, Mesh) and layout.recompute_budget_mb is not None and layout.pp > 1:
        reason = f"the budget is of one micro-batch, but a pipeline (parallel.pp={layout.pp}) has several under way"
        yield Problem("parallel.recompute_budget_mb", layout.recompute_budget_mb, reason, "parallel.recompute_budget_mb=null")


def chosen_recomputation_is_not_compiled(job: Job) -> Iterator[Problem]:
    """Which operations are kept, and which blocks are, is decided while they run."""
    layout = job.parallel
    if not (isinstance(layout, Mesh) and job.trainer.compile):
        return
    for key, value, neutral in (
        ("recompute_keep", layout.recompute_keep, []),
        ("recompute_budget_mb", layout.recompute_budget_mb, None),
    ):
        if value != neutral:
            reason = "what is kept is decided while blocks run, into which torch.compile looks; not shown to be right"
            yield Problem(f"parallel.{key}", value, reason, "trainer.compile=false")
            return


def steps_in_backward_need_complete_gradients(job: Job) -> Iterator[Problem]:
    """A parameter is stepped when its gradient comes: nothing may be added to it, or asked of all of them, afterwards."""
    if not (job.trainer.in_backward and isinstance(job.stage, TrainingSpec)):
        return
    stage, rows = job.stage, job.trainer.micro_batch_size
    off = "trainer.in_backward=false"
    if job.model.graph == "counts":
        yield Problem("trainer.in_backward", True, "this model is fitted by counting, without gradients", off)
    elif job.launch.world() > 1 or not isinstance(job.parallel, Mesh):
        reason = "gradients of several processes are added up after the hooks of parameters"
        yield Problem("trainer.in_backward", True, reason, off)
    elif rows is not None and rows < job.trainer.batch_size:
        reason = f"several micro-batches a step (micro_batch_size={rows}, batch_size={job.trainer.batch_size}) add up gradients"
        yield Problem("trainer.in_backward", True, reason, "trainer.micro_batch_size=null")
    elif job.optim.clip_norm is not None:
        reason = f"clipping (optim.clip_norm={job.optim.clip_norm}) needs the norm of all gradients first"
        yield Problem("trainer.in_backward", True, reason, "optim.clip_norm=null")
    elif job.optim.clip_value is not None:
        reason = f"optim.clip_value={job.optim.clip_value} bounds gradients after the backward pass"
        yield Problem("trainer.in_backward", True, reason, "optim.clip_value=null")
    elif not isinstance(job.guard, NoGuard):
        yield Problem("trainer.in_backward", True, "a guard judges a step before it is made", off)
    elif isinstance(job.precision, Fp16Mixed):
        yield Problem("trainer.in_backward", True, "a scaled loss needs all gradients to be looked at first", off)
    elif isinstance(job.peft, Adalora):
        yield Problem("trainer.in_backward", True, "AdaLoRA looks at the gradients after a step", off)
    elif not isinstance(stage.anchor, NoAnchor):
        yield Problem("trainer.in_backward", True, "an anchor adds its pull to the gradients after the backward pass", off)
    elif isinstance(stage, Pretrain) and stage.embeddings_only_steps:
        yield Problem("trainer.in_backward", True, "parameters that rest (stage.embeddings_only_steps) drop their gradients", off)
    elif isinstance(stage, RlSpec):
        yield Problem("trainer.in_backward", True, "reinforcement learning makes several passes a step", off)
