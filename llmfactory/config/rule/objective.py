"""Rules about what a model is trained on."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import stem, walk
from llmfactory.data.spec import Labelled, Mixture
from llmfactory.data.task.spec import task_of
from llmfactory.model.head.spec import Scalar
from llmfactory.model.position.spec import Learned2d, Rope2d
from llmfactory.model.spec import EncoderOnly, TowerSpec
from llmfactory.objective.spec import (
    LABELLED,
    BlankInfilling,
    Causal,
    ObjectiveSpec,
    PreferenceSpec,
    ReplacedToken,
    RewardSpec,
    Seq2seq,
    Tilted,
    answers_of,
    natural,
)
from llmfactory.parallel.spec import Mesh
from llmfactory.stage.spec import Preference, Reward, Sft, TrainingSpec


def objective_fits_the_model(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, TrainingSpec):
        return
    objective, graph, says = job.stage.objective, job.model.graph, answers_of(job.model)
    if graph in objective.graphs and says == objective.answers:
        return
    if graph not in objective.graphs:
        reason = f"it trains models of the kind {' or '.join(objective.graphs)}, and this one is of the kind {graph}"
    else:
        reason = f"it needs a head that answers with {objective.answers}, and model.head answers with {says}"
    if graph in objective.graphs and objective.answers in HEADS:
        yield Problem("model.head", says, reason, f"model/head={head_for(objective)}")
        return
    fitting = natural(graph, says)
    task = next((cls for cls in LABELLED if graph in cls.graphs and cls.answers == says), None)
    if isinstance(job.stage, Sft) and graph == "encoder_decoder":
        repair = "stage/objective=seq2seq data=examples data/task=rewrite data.files=[my.jsonl]"
    elif fitting is not None:
        repair = f"stage/objective={stem(fitting)}"
    elif task is not None:
        repair = f"stage/objective={stem(task)} {examples_of(says)}"
    else:
        repair = "stage=describe"
    yield Problem("stage.objective", stem(type(objective)), reason, repair)


def objective_fits_the_data(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, TrainingSpec):
        return
    objective, name = job.stage.objective, stem(type(job.stage.objective))
    if not isinstance(job.data, Labelled):
        if objective.labelled:
            reason = f"the objective {name} learns from labelled examples, and these are running text"
            yield Problem("data", stem(type(job.data)), reason, examples_of(objective.answers))
        return
    task = job.data.task
    if not objective.labelled:
        fitting = next(cls for cls in LABELLED if cls.answers == task.kind)
        reason = f"the objective {name} learns from running text, and these are labelled examples"
        part = f"model/head={HEADS[task.kind]}" if task.kind in HEADS else "model=t5_small"
        yield Problem("stage.objective", name, reason, f"stage/objective={stem(fitting)} {part}")
    elif objective.answers != task.kind:
        reason = f"the objective {name} wants examples of another task"
        yield Problem("data.task", stem(type(task)), reason, f"data/task={task_of(objective.answers)}")


HEADS = {"label": "classifier", "labels": "token_classifier", "span": "span_qa", "scalar": "reward"}
"""A head for each kind of answers that wants one of its own."""


def head_for(objective: ObjectiveSpec) -> str:
    """The head that says what an objective asks for."""
    return "value" if isinstance(objective, RewardSpec) and objective.each_token else HEADS[objective.answers]


def examples_of(answers: str) -> str:
    """Overrides that choose examples of a task."""
    return f"data=examples data/task={task_of(answers)} data.files=[my.jsonl]"


def blanks_have_two_positions(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, TrainingSpec) or not isinstance(job.stage.objective, BlankInfilling):
        return
    if isinstance(job.model, TowerSpec) and not isinstance(job.model.position, (Rope2d, Learned2d)):
        reason = "a token of a blank has two positions, that of the blank and its own in it, and this part knows one"
        yield Problem("model.position", stem(type(job.model.position)), reason, "model/position=learned_2d")


def generator_can_be_built(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, TrainingSpec) or not isinstance(job.stage.objective, ReplacedToken):
        return
    objective = job.stage.objective
    if not isinstance(job.model, EncoderOnly):
        return
    try:
        objective.generator(job.model)
    except ConfigError as error:
        reason = f"there is no generator of that size: its {error.problems[0].path} {error.problems[0].reason}"
        yield Problem("stage.objective.generator_scale", objective.generator_scale, reason, "stage.objective.generator_scale=1.0")


def a_stage_learns_what_it_is_for(job: Job) -> Iterator[Problem]:
    """The stages that train are one loop; what they are called for is their objective."""
    if not isinstance(job.stage, TrainingSpec):
        return
    objective, name = job.stage.objective, stem(type(job.stage.objective))
    if isinstance(job.stage, Sft) and not isinstance(objective, (Causal, Seq2seq, Tilted)):
        reason = "stage=sft learns to write answers, as the objectives causal (decoders) and seq2seq (encoder-decoders) do"
        fitting = "seq2seq" if job.model.graph == "encoder_decoder" else "causal"
        yield Problem("stage.objective", name, reason, f"stage/objective={fitting}")
    elif isinstance(job.stage, Reward) and not isinstance(objective, RewardSpec):
        reason = "stage=reward learns to judge answers, as bradley_terry, ranking, regression and process do"
        yield Problem("stage.objective", name, reason, "stage=sft stage/objective=causal")
    elif isinstance(objective, RewardSpec) and not isinstance(job.stage, Reward):
        yield Problem(
            "stage", stem(type(job.stage)), f"the objective {name} trains a reward model", f"stage=reward stage/objective={name}"
        )
    elif isinstance(job.stage, Preference) and not isinstance(objective, PreferenceSpec):
        reason = "stage=preference learns which answers are preferred, as dpo, kto, orpo and others do"
        yield Problem("stage.objective", name, reason, "stage=sft stage/objective=causal")
    elif isinstance(objective, PreferenceSpec) and not isinstance(job.stage, Preference):
        reason = f"the objective {name} compares with a reference, or says that there is none, which stage=preference knows of"
        yield Problem("stage", stem(type(job.stage)), reason, f"stage=preference stage/objective={name}")


def rewards_are_of_answers_or_of_steps(job: Job) -> Iterator[Problem]:
    """One number for each answer, or one at every token of which those at the ends of steps are learned."""
    objective = job.stage.objective if isinstance(job.stage, TrainingSpec) else None
    if not isinstance(objective, RewardSpec):
        return
    for path, part in walk(job.model, "model"):
        if isinstance(part, Scalar) and (part.pooling is None) is not objective.each_token:
            has = "a number at every token" if part.pooling is None else "one number for a whole answer"
            wanted = "one at the end of each step" if objective.each_token else "one for each answer"
            reason = f"it gives {has}, and the objective {stem(type(objective))} wants {wanted}"
            yield Problem(path, stem(type(part)), reason, f"model/head={head_for(objective)}")


def tilted_losses_are_of_several_sources(job: Job) -> Iterator[Problem]:
    """And what they are is known before the backward pass, which a pipeline's stages only hear of in the end."""
    if not isinstance(job.stage, TrainingSpec) or not isinstance(job.stage.objective, Tilted):
        return
    if not isinstance(job.data, Mixture) or len(job.data.sources) < 2:
        reason = "there is one source, so that there is nothing to weigh: it takes those of a mixture"
        yield Problem("stage.objective", "tilted", reason, "stage/objective=causal")
    elif not isinstance(job.parallel, Mesh) or job.parallel.pp > 1:
        reason = "it looks at the losses of all sources before the first backward pass, which this layout has no pass for"
        yield Problem("stage.objective", "tilted", reason, "stage/objective=causal")
