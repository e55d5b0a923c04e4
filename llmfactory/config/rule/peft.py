"""Rules about training a small part of a model."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.rule.degrees import degrees_of
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.parallel.spec import DeepSpeed, Mesh, TensorForm
from llmfactory.peft.spec import Adalora, AdapterSpec, Dora, InLayersSpec, Lora, PrecedingSpec, Qlora
from llmfactory.stage.spec import Describe, Plan, Pretrain, TrainingSpec

COMPILED = (Lora, Dora)
"""Methods that are proven under the compiler (tests/peft/test_compiled.py, tests/distributed/test_compiled.py)."""


def what_merges_is_for_training(job: Job) -> Iterator[Problem]:
    """Elsewhere fresh adapters would do nothing; those of `init` stand in its weights."""
    trains = isinstance(job.stage, (TrainingSpec, Plan, Describe))
    if isinstance(job.peft, AdapterSpec) and job.peft.merges and not trains:
        reason = "this stage trains nothing, and what the run of init has trained is put into its weights"
        yield Problem("peft", stem(type(job.peft)), reason, "peft=none")


def grids_cut_plain_matrices(job: Job) -> Iterator[Problem]:
    layout = job.parallel
    if not _adds(job) or not isinstance(layout, Mesh) or layout.tensor_form is not TensorForm.summa or layout.tp == 1:
        return
    reason = f"what peft={stem(type(job.peft))} adds is not cut along both sides of a grid of processes"
    yield Problem("parallel.tensor_form", "summa", reason, "parallel.tensor_form=one_d")


def dora_sees_whole_rows(job: Job) -> Iterator[Problem]:
    if isinstance(job.peft, Dora) and degrees_of(job).get("tp", 1) > 1:
        reason = "it divides by the norm of each row of a matrix, of which a tensor-parallel process may hold a piece"
        yield Problem("peft", "dora", reason, "peft=lora")


def few_bits_are_not_cut(job: Job) -> Iterator[Problem]:
    if isinstance(job.peft, Qlora) and degrees_of(job).get("tp", 1) > 1:
        reason = "its matrices are packed as wholes, blocks and groups of scales, of which a tensor-parallel process has no piece"
        yield Problem("peft", "qlora", reason, "peft=lora")


def compiled_adapters_are_proven(job: Job) -> Iterator[Problem]:
    """The compiler looks into adapters and, between processes, into what gathers and sums around them."""
    if (
        not isinstance(job.peft, AdapterSpec)
        or job.peft.changes_base
        or not job.trainer.compile
        or not isinstance(job.stage, TrainingSpec)
    ):
        return
    if isinstance(job.peft, PrecedingSpec) and not isinstance(job.peft, InLayersSpec):
        return  # a rule of their own says why
    reason, name = None, stem(type(job.peft))
    if type(job.peft) not in COMPILED:
        reason = f"peft={name} is not shown to train the same where compiled"
    elif uncommon := [axis for axis in ("cp", "pp", "ep") if degrees_of(job).get(axis, 1) > 1]:
        reason = (
            f"peft={name} is shown to train the same where compiled under data and tensor parallelism, not with {uncommon[0]}"
        )
    if reason is not None:
        yield Problem("trainer.compile", True, reason, "trainer.compile=false")


def adalora_compares_all_maps(job: Job) -> Iterator[Problem]:
    if not isinstance(job.peft, Adalora):
        return
    degrees = degrees_of(job)
    cut = next((name for name in ("tp", "pp") if degrees.get(name, 1) > 1), None)
    if cut is not None:
        what = "pieces of maps" if cut == "tp" else "some layers"
        reason = f"it compares the triplets of all maps, of which a process has {what} under {cut}={degrees[cut]}"
        yield Problem("peft", "adalora", reason, "peft=lora")
    elif job.model.graph == "two_stream":
        yield Problem("peft", "adalora", "its term counts each token once, and this model reads some twice", "peft=lora")


def adalora_comes_to_its_end(job: Job) -> Iterator[Problem]:
    if isinstance(job.peft, Adalora) and isinstance(job.stage, TrainingSpec) and job.peft.total_steps > job.trainer.max_steps:
        reason = f"the run ends after trainer.max_steps={job.trainer.max_steps}, before the budget is down to peft.target_rank"
        short = job.trainer.max_steps > job.peft.first_steps + job.peft.last_steps
        repair = f"peft.total_steps={job.trainer.max_steps}" if short else f"trainer.max_steps={job.peft.total_steps}"
        yield Problem("peft.total_steps", job.peft.total_steps, reason, repair)


def deepspeed_trains_whole_models(job: Job) -> Iterator[Problem]:
    """Its engine has not been compared with ours where a part is frozen."""
    if isinstance(job.parallel, DeepSpeed) and isinstance(job.peft, AdapterSpec):
        reason = "nothing shows that DeepSpeed's engine makes the same steps where most of a model is frozen; our own layouts do"
        yield Problem("parallel", stem(type(job.parallel)), reason, f"parallel=zero{job.parallel.stage}")


def what_is_counted_has_no_adapters(job: Job) -> Iterator[Problem]:
    if job.model.graph == "counts" and isinstance(job.peft, AdapterSpec):
        reason = "this model counts n-grams and has no parameters to freeze"
        yield Problem("peft", stem(type(job.peft)), reason, "peft=none")


def the_first_phase_trains_tables(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, Pretrain) or not job.stage.embeddings_only_steps or not isinstance(job.peft, AdapterSpec):
        return
    reason = f"peft={stem(type(job.peft))} freezes the tables, which alone would learn in these steps"
    yield Problem("stage.embeddings_only_steps", job.stage.embeddings_only_steps, reason, "stage.embeddings_only_steps=0")


def _adds(job: Job) -> bool:
    """Whether the method puts something beside the model's own parameters."""
    return isinstance(job.peft, AdapterSpec) and not job.peft.changes_base
