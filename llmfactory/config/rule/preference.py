"""Rules about the models that preferences are compared with."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.rule.degrees import with_degrees
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem, walk
from llmfactory.model.ffn.spec import MoeSpec
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.model.position.spec import Alibi, Learned, Rope, Sinusoidal, T5Bias
from llmfactory.model.position.spec import None_ as NoPosition
from llmfactory.model.spec import DecoderOnly
from llmfactory.objective.spec import BradleyTerry, Compares, Kto, PreferenceSpec, Ranking, Reference
from llmfactory.parallel.spec import DeepSpeed, Mesh, TensorForm
from llmfactory.peft.spec import None_
from llmfactory.stage.spec import Preference, Reward, starts_at_its_base

WITHIN = (Reference.base, Reference.copy)
"""References that are run beside the model."""


def a_reference_is_what_the_objective_compares_with(job: Job) -> Iterator[Problem]:
    found = _preference(job)
    if found is None or found[0].reference is None:
        return
    objective, given = found[1], found[0].reference
    name = stem(type(objective))
    if objective.compares is Compares.never and given is not Reference.none:
        yield Problem("stage.reference", given.name, f"the objective {name} compares with none", "stage.reference=null")
    elif objective.compares is Compares.always and given is Reference.none:
        reason = f"the objective {name} says by how much the model has moved away from a reference"
        yield Problem("stage.reference", "none", reason, "stage.reference=null")
    elif given is Reference.base and not starts_at_its_base(job):
        if isinstance(job.peft, None_):
            reason = "no adapters are trained that could be switched off"
        elif not job.peft.merges:
            reason = f"the adapters of init may be what peft={stem(type(job.peft))} goes on with: without them it is not what it began with"
        else:
            reason = f"peft={stem(type(job.peft))} changes or replaces weights of the model itself: what is left is not what it began with"
        yield Problem("stage.reference", "base", reason, "stage.reference=null")
    elif given is Reference.copy and not (isinstance(job.peft, None_) or job.peft.changes_base):
        reason = "adapters are trained beside weights that stay as they are: a copy of these would be a second one"
        yield Problem("stage.reference", "copy", reason, "stage.reference=null")


def a_reference_lies_as_the_model_does(job: Job) -> Iterator[Problem]:
    """Layouts that cannot run a second model, or not say what each row's answers are worth."""
    found = _preference(job)
    if found is None:
        return
    (stage, objective), layout = found, job.parallel
    reference = stage.reference_in(job)
    if isinstance(layout, DeepSpeed):
        reason = (
            f"DeepSpeed's engine is proven on the next token alone, and stage/objective={stem(type(objective))} compares answers"
        )
        yield Problem("parallel.stage", layout.stage, reason, f"parallel=zero{layout.stage}")
    elif isinstance(layout, Mesh) and layout.pp > 1:
        if isinstance(objective, Kto):
            reason = "the objective kto must have seen the whole step before its first loss, and a pipeline has begun by then"
            yield Problem("parallel.pp", layout.pp, reason, with_degrees(job, pp=1))
        elif reference in WITHIN:
            reason = f"the reference is a second model, and a pipeline (parallel.pp={layout.pp}) deals out one"
            yield Problem("stage.reference", reference.name, reason, "stage.reference=precomputed")
    elif isinstance(layout, Mesh) and layout.tensor_form is TensorForm.summa and reference is Reference.precomputed:
        reason = "each row of the grid has its own rows of a batch, and the reference is asked for those of all"
        yield Problem("parallel.tensor_form", "summa", reason, "parallel.tensor_form=one_d")


def shared_prompts_change_no_number(job: Job) -> Iterator[Problem]:
    """Tokens of a branch must find what they would find in a document of their own: nothing but attention may look at others."""
    stage = job.stage
    if not isinstance(stage, (Preference, Reward)) or not stage.shared_prompt:
        return
    layout, reason = job.parallel, None
    mixture = next((path for path, part in walk(job.model, "model") if isinstance(part, MoeSpec)), None)
    position = job.model.position if isinstance(job.model, DecoderOnly) else None
    pooling = job.model.head.pooling if isinstance(job.model, DecoderOnly) and isinstance(job.model.head, Scalar) else None
    if not isinstance(stage.objective, (PreferenceSpec, BradleyTerry, Ranking)) or isinstance(stage.objective, Kto):
        reason = f"the objective {stem(type(stage.objective))} compares no answers, which could share their prompt"
    elif pooling not in (None, Pooling.last):
        reason = f"model.head.pooling={pooling.name} looks at the prompt of each answer, too"
    elif position is None:
        reason = f"a model of the kind {job.model.graph} reads one token after the other, so that a branch would follow the one before it"
    elif not isinstance(position, (Rope, Learned, Alibi, Sinusoidal, T5Bias, NoPosition)):
        reason = f"model/position={stem(type(position))} counts places in the row, in which branches stand one behind the other"
    elif mixture is not None:
        reason = f"the experts of {mixture} are balanced over the tokens of a row, and a shared prompt would count once"
    elif isinstance(layout, Mesh) and layout.cp > 1:
        reason = f"context parallelism (parallel.cp={layout.cp}) is not proven with branches"
    elif isinstance(stage, Reward) and isinstance(layout, Mesh) and max(layout.tp, layout.pp) > 1:
        degrees = f"parallel.tp={layout.tp} parallel.pp={layout.pp}"
        reason = (
            f"rewards of answers that share their prompt are proven where whole rows are shared out only, not under {degrees}"
        )
    if reason is not None:
        yield Problem("stage.shared_prompt", True, reason, "stage.shared_prompt=false")


def _preference(job: Job) -> tuple[Preference, PreferenceSpec] | None:
    if isinstance(job.stage, Preference) and isinstance(job.stage.objective, PreferenceSpec):
        return job.stage, job.stage.objective
    return None
