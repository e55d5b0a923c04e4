"""Rules about learning from answers that the model writes."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.initial import method_of
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.core.spec import stem
from llmfactory.objective.spec import ActorCritic, Policy, PolicySpec
from llmfactory.parallel.spec import DeepSpeed, Mesh
from llmfactory.stage.spec import Grpo, Ppo, RlSpec, TrainingSpec


def rewards_come_from_graders(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, RlSpec) and not job.stage.graders:
        name = stem(type(job.stage))
        reason = f"stage={name} learns from rewards, and nobody gives any: name graders, which judge each answer"
        yield Problem("stage.graders", "{}", reason, "'stage/grader=[exact_match]'")


def written_answers_teach_policies(job: Job) -> Iterator[Problem]:
    """Each stage has its objective, and these objectives have no other stages."""
    if not isinstance(job.stage, TrainingSpec):
        return
    objective, name = job.stage.objective, stem(type(job.stage.objective))
    if isinstance(job.stage, RlSpec):
        wanted = ActorCritic if isinstance(job.stage, Ppo) else Policy
        if not isinstance(objective, wanted):
            reason = f"stage={stem(type(job.stage))} learns from graded answers of the model's own, {name} does not"
            yield Problem("stage.objective", name, reason, f"stage/objective={stem(wanted)}")
    elif isinstance(objective, PolicySpec):
        stage = "ppo" if isinstance(objective, ActorCritic) else "grpo"
        reason = f"{name} learns from answers that the model has written and graders have judged, which stage={stage} has made"
        yield Problem("stage.objective", name, reason, f"stage={stage} 'stage/grader=[exact_match]'")


def divergence_is_from_where_training_began(job: Job) -> Iterator[Problem]:
    """A copy of the model as it was holds its weights, not adapters that cannot be put into them."""
    if not isinstance(job.stage, RlSpec) or job.init is None:
        return
    objective = job.stage.objective
    if not isinstance(objective, PolicySpec) or not objective.kl_coef:
        return
    method = method_of(job.init)
    if method is not None and not method.merges:
        reason = (
            f"the reference would be the model of {job.init} without what its peft={stem(type(method))} learned, which cannot be put "
            "into its weights"
        )
        steered = isinstance(job.stage, Ppo) and job.stage.kl_target is not None
        repair = "stage.objective.kl_coef=0" + (" stage.kl_target=null" if steered else "")
        yield Problem("stage.objective.kl_coef", objective.kl_coef, reason, repair)


def steps_share_out_the_answers(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, RlSpec):
        return
    answers, size = job.stage.answers, job.trainer.batch_size
    if answers is not None and answers % size:
        reason = f"the answers of an iteration are learned from in steps of trainer.batch_size={size}"
        group = job.stage.group if isinstance(job.stage, Grpo) else 1
        nearest = next(number for number in range(size, size * group + 1, size) if number % group == 0)
        yield Problem("stage.answers", answers, reason, f"stage.answers={nearest * max(1, round(answers / nearest))}")
    if answers is None and isinstance(job.stage, Grpo) and size % job.stage.group:
        reason = f"answers come in groups of stage.group={job.stage.group}, and stage.answers=null is one step of them"
        yield Problem(
            "trainer.batch_size", size, reason, f"trainer.batch_size={job.stage.group * max(1, size // job.stage.group)}"
        )


def whoever_writes_has_the_whole_model(job: Job) -> Iterator[Problem]:
    """Writing reads the weights between steps, whole; what is dealt out as layers, or lies with another engine, is not put together."""
    if not isinstance(job.stage, RlSpec):
        return
    reason = "answers are written between the steps by the whole model, which this layout does not put together"
    if isinstance(job.parallel, DeepSpeed):
        yield Problem("parallel", stem(type(job.parallel)), reason, "parallel=ddp")
    elif isinstance(job.parallel, Mesh) and job.parallel.pp > 1:
        yield Problem("parallel.pp", job.parallel.pp, reason, "parallel=ddp")


def a_target_has_a_penalty_to_steer(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, Ppo) or not isinstance(job.stage.objective, ActorCritic):
        return
    if job.stage.kl_target is not None and job.stage.objective.kl_coef == 0:
        reason = "it steers stage.objective.kl_coef, and a factor of 0 stays 0"
        yield Problem("stage.kl_target", job.stage.kl_target, reason, "stage.objective.kl_coef=0.05")
