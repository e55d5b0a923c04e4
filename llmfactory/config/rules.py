"""Rules between the parts of a job. One spec checks itself (`Spec.problems`); what takes several stands here, by name.

Each rule is a function from the job to what is wrong with it. The name of the rule is part of its message, so that a refusal
can be looked up here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from yaml import YAMLError  # type: ignore[import-untyped]

from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.target import target_for
from llmfactory.config.initial import run_of, saved_config
from llmfactory.config.plain import to_plain
from llmfactory.config.spec import Job
from llmfactory.config.tree import override_key
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import stem, walk
from llmfactory.data.spec import Labelled
from llmfactory.data.task.spec import task_of
from llmfactory.data.tokenizer.spec import ByteBpe, Bytes, WordLevel
from llmfactory.launch.spec import Local
from llmfactory.model.ffn.spec import BalanceOver, MoeSpec
from llmfactory.model.position.spec import Learned2d, Rope2d
from llmfactory.model.spec import EncoderOnly, ModelSpec, TowerSpec
from llmfactory.objective.spec import LABELLED, BlankInfilling, Causal, Prefix, ReplacedToken, answers_of, natural
from llmfactory.optim.schedule.spec import DecaySpec, InverseSqrt, Wsd
from llmfactory.parallel.spec import Backend, Mesh
from llmfactory.run.spec import Device
from llmfactory.stage.format.spec import Gguf
from llmfactory.stage.spec import Embed, Evaluate, Export, Generate, TrainingSpec

Rule = Callable[[Job], Iterator[Problem]]

BYTES = 257
"""Ids that bytes take: one each, and the end of a document."""


def check(job: Job) -> list[Problem]:
    """What is wrong between the parts of a job."""
    return [
        dataclasses.replace(problem, reason=f"{problem.reason} (rule {rule.__name__})") for rule in RULES for problem in rule(job)
    ]


def world_is_the_product_of_degrees(job: Job) -> Iterator[Problem]:
    world = job.launch.world()
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


def nccl_needs_gpus(job: Job) -> Iterator[Problem]:
    if isinstance(job.parallel, Mesh) and job.parallel.backend is Backend.nccl and job.trainer.device is Device.cpu:
        yield Problem("parallel.backend", "nccl", "NCCL moves data between GPUs, but trainer.device=cpu", "parallel.backend=auto")


def one_number_of_threads(job: Job) -> Iterator[Problem]:
    threads = job.launch.threads if isinstance(job.launch, Local) else None
    if threads is not None and job.trainer.threads is not None and threads != job.trainer.threads:
        reason = f"launch.threads={threads} says otherwise"
        yield Problem("trainer.threads", job.trainer.threads, reason, "trainer.threads=null")


def rows_fit_the_model(job: Job) -> Iterator[Problem]:
    longest = job.model.max_positions
    if job.data.seq_len > longest:
        reason = f"rows are longer than the model's max_positions={longest}"
        yield Problem("data.seq_len", job.data.seq_len, reason, f"data.seq_len={longest}")


def ids_fit_the_model(job: Job) -> Iterator[Problem]:
    tokenizer, size = job.data.tokenizer, job.model.vocab_size
    special = len(job.stage.objective.specials()) if isinstance(job.stage, TrainingSpec) else 0
    besides = f", {special} of them for special tokens of {stem(type(job.stage.objective))}" if special else ""
    if isinstance(tokenizer, (ByteBpe, WordLevel)) and tokenizer.vocab_size is not None and tokenizer.vocab_size + special > size:
        reason = f"the model has an embedding for {size} ids only (model.vocab_size){besides}"
        yield Problem("data.tokenizer.vocab_size", tokenizer.vocab_size, reason, "data.tokenizer.vocab_size=null")
    if isinstance(tokenizer, (ByteBpe, Bytes)) and size < BYTES + special:
        needed = BYTES + special
        reason = f"{needed} ids are needed at least{besides}; a byte-level tokenizer has every byte, and the end of a document"
        yield Problem("model.vocab_size", size, reason, f"model.vocab_size={needed}")


def trained_model_is_given(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, (Generate, Evaluate, Export, Embed)) or job.init is not None:
        return
    runs = sorted(Path(job.output_dir).glob("*/checkpoints"), key=lambda folder: -folder.stat().st_mtime)
    if runs:
        yield Problem("init", None, "this stage needs a trained model", f"init={runs[0].parent}")
    else:
        reason = (
            f"this stage needs a trained model, and there is no run below {job.output_dir} yet: train one with stage=pretrain"
        )
        yield Problem("init", None, reason)


def a_family_can_say_the_model(job: Job) -> Iterator[Problem]:
    """What is exported must mean the same to others; else it is refused before anything is loaded."""
    if not isinstance(job.stage, Export):
        return
    is_gguf, family = isinstance(job.stage.format, Gguf), job.stage.family
    try:
        target_for(job.model, family, gguf=is_gguf)
    except Inexpressible as error:
        if is_gguf and _can_say(job.model, family):
            yield Problem("stage.format", "gguf", str(error), "stage/format=hf")
        elif family is not None:
            yield Problem("stage.family", family, str(error), "stage.family=null")
        else:
            yield Problem("stage.format", stem(type(job.stage.format)), f"{error}; only our own run folders can hold it")


def _can_say(model: ModelSpec, family: str | None) -> bool:
    try:
        target_for(model, family)
    except Inexpressible:
        return False
    return True


def the_head_makes_vectors(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, Embed) and (says := answers_of(job.model)) != "vector":
        reason = f"its answer is {says}, and stage=embed wants a vector for each text"
        yield Problem("model.head", stem(type(getattr(job.model, "head", job.model))), reason, "model/head=sentence")


def decay_reaches_the_end(job: Job) -> Iterator[Problem]:
    """A run that goes on with larger max_steps may: its folder is there already, and `run/resume.py` compares the two."""
    schedule, steps = job.optim.schedule, job.trainer.max_steps
    if not isinstance(job.stage, TrainingSpec) or not isinstance(schedule, DecaySpec) or schedule.horizon is None:
        return
    if schedule.horizon < steps and not _goes_on(job):
        reason = f"the learning rate would stay at its floor for the last {steps - schedule.horizon} of trainer.max_steps={steps}"
        yield Problem("optim.schedule.horizon", schedule.horizon, reason, f"optim.schedule.horizon={steps}")


def _goes_on(job: Job) -> bool:
    return job.name is not None and Path(job.output_dir, job.name, "config.yaml").is_file()


def warmup_ends_before_the_run(job: Job) -> Iterator[Problem]:
    schedule, steps = job.optim.schedule, job.trainer.max_steps
    if isinstance(job.stage, TrainingSpec) and schedule.pinned_horizon() is None and schedule.warmup_steps >= steps:
        reason = f"warm-up takes the whole run (trainer.max_steps={steps}), so the peak rate is never reached"
        yield Problem("optim.schedule.warmup_steps", schedule.warmup_steps, reason, f"optim.schedule.warmup_steps={steps // 10}")


def warmup_and_decay_leave_room(job: Job) -> Iterator[Problem]:
    schedule = job.optim.schedule
    if not isinstance(schedule, Wsd):
        return
    horizon = schedule.horizon or job.trainer.max_steps
    room = horizon - schedule.warmup_steps
    if room > 0 and round(schedule.decay_share * horizon) > room:
        reason = f"the decay would start within the warm-up of {schedule.warmup_steps} of {horizon} steps"
        fitting = math.floor(100 * room / horizon) / 100
        yield Problem("optim.schedule.decay_share", schedule.decay_share, reason, f"optim.schedule.decay_share={fitting}")


def inverse_sqrt_warms_up(job: Job) -> Iterator[Problem]:
    schedule = job.optim.schedule
    if isinstance(schedule, InverseSqrt) and schedule.warmup_steps == 0:
        reason = "the rate is sqrt(warmup_steps / step): without a warm-up it has fallen to a tenth after 100 steps"
        yield Problem("optim.schedule.warmup_steps", 0, reason, "optim.schedule.warmup_steps=100")


def best_is_looked_for(job: Job) -> Iterator[Problem]:
    if isinstance(job.stage, TrainingSpec) and job.trainer.keep_best and job.trainer.eval_every is None:
        reason = "the best checkpoint is found by evaluations during training, and trainer.eval_every=null makes none"
        yield Problem("trainer.keep_best", True, reason, "trainer.keep_best=false")


def held_out_text_is_there(job: Job) -> Iterator[Problem]:
    looks = isinstance(job.stage, Evaluate) or (isinstance(job.stage, TrainingSpec) and job.trainer.eval_every is not None)
    other_files = isinstance(job.data, Labelled) and bool(job.data.held_out_files)
    if looks and job.data.held_out == 0 and not other_files:
        yield Problem("data.held_out", 0.0, "there would be no text to evaluate on", "data.held_out=0.05")


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
    if objective.labelled and graph in objective.graphs and objective.answers in HEADS:
        yield Problem("model.head", says, reason, f"model/head={HEADS[objective.answers]}")
        return
    fitting = natural(graph, says)
    task = next((cls for cls in LABELLED if graph in cls.graphs and cls.answers == says), None)
    if fitting is not None:
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
        yield Problem(
            "data", stem(type(job.data)), reason, "data=pydocs" if job.init is None else f"stage/objective={stem(fitting)}"
        )
    elif objective.answers != task.kind:
        reason = f"the objective {name} wants examples of another task"
        yield Problem("data.task", stem(type(task)), reason, f"data/task={task_of(objective.answers)}")


HEADS = {"label": "classifier", "labels": "token_classifier", "span": "span_qa"}
"""A head for each task that wants one of its own."""


def examples_of(answers: str) -> str:
    """Overrides that choose examples of a task."""
    return f"data=examples data/task={task_of(answers)} data.files=[my.jsonl]"


def a_text_is_continued_from_the_left(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, Generate):
        return
    graph, says = job.model.graph, answers_of(job.model)
    if graph == "encoder":
        reason = "each of its tokens sees the whole text, so stage=generate finds nothing to continue"
        yield Problem("model", stem(type(job.model)), reason, "model=llama_tiny")
    elif graph == "two_stream":
        reason = "it predicts a token from its query stream, in an order that stage=generate does not make"
        yield Problem("model", stem(type(job.model)), reason, "model=llama_tiny")
    elif graph == "words":
        reason = "it has a vector for each word and predicts no next one, so stage=generate finds nothing to write"
        yield Problem("model", stem(type(job.model)), reason, "model=llama_tiny")
    elif says != "tokens":
        yield Problem("model.head", says, "stage=generate needs a head that answers with tokens", "model/head=lm")


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


def sample_is_made(job: Job) -> Iterator[Problem]:
    if (
        isinstance(job.stage, TrainingSpec)
        and job.stage.sample_prompt is not None
        and not isinstance(job.stage.objective, (Causal, Prefix, BlankInfilling))
    ):
        reason = f"a model trained on {stem(type(job.stage.objective))} does not go on with a text, so there is no sample"
        yield Problem("stage.sample_prompt", job.stage.sample_prompt, reason, "stage.sample_prompt=null")
    elif isinstance(job.stage, TrainingSpec) and job.stage.sample_prompt is not None and not job.trainer.sample:
        yield Problem(
            "stage.sample_prompt", job.stage.sample_prompt, "trainer.sample=false makes no sample", "trainer.sample=true"
        )


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


def cross_attention_stands_at_cross(job: Job) -> Iterator[Problem]:
    """Attention to an encoder's output reads no tokens of its own, and the other way round."""
    for path, tower in walk(job.model, "model"):
        if not isinstance(tower, TowerSpec):
            continue
        places = {"attention": tower.attention} | ({} if tower.cross is None else {"cross": tower.cross})
        for name, part in places.items():
            if part.of_memory is not (name == "cross"):
                reason = f"attends to {'an encoder' if part.of_memory else 'its own text'}, which is not what is wanted here"
                key = override_key("model/attention", f"{path}.{name}")
                other = "cross" if name == "cross" else "gqa"
                yield Problem(f"{path}.{name}", stem(type(part)), reason, f"{key}={other}")


def held_out_documents_are_the_run_s(job: Job) -> Iterator[Problem]:
    """Another share of the same documents would hold out some that the model was trained on."""
    run = None if job.init is None else run_of(job.init)
    if run is None or not isinstance(job.stage, Evaluate):
        return
    try:
        saved = saved_config(run)["data"]
        same, share = saved["source"] == to_plain(job.data).get("source"), saved["held_out"]
    except (OSError, UnicodeDecodeError, YAMLError, ConfigError, KeyError, TypeError):
        return  # whoever reads the run says what is wrong with it
    if same and share != job.data.held_out:
        reason = f"the model of {run} was trained on all documents but the held-out {share}, so another share holds some of them"
        yield Problem("data.held_out", job.data.held_out, reason, f"data.held_out={share}")


def counting_is_no_optimization(job: Job) -> Iterator[Problem]:
    """Keys that could not do what they say where training is one pass of counting."""
    if job.model.graph != "counts" or not isinstance(job.stage, TrainingSpec):
        return
    why = "this model is fitted by counting, in one pass of one process"
    if job.launch.world() > 1:
        yield Problem("launch", stem(type(job.launch)), why, "launch=single parallel=single")
    if job.init is not None:
        yield Problem("init", job.init, f"{why}: there is nothing to go on from", "init=null")
    if job.trainer.patience is not None:
        yield Problem("trainer.patience", job.trainer.patience, why, "trainer.patience=null")
    if job.trainer.compile:
        yield Problem("trainer.compile", True, why, "trainer.compile=false")
    if isinstance(job.stage.objective, Causal) and job.stage.objective.label_smoothing:
        yield Problem(
            "stage.objective.label_smoothing", job.stage.objective.label_smoothing, why, "stage.objective.label_smoothing=0.0"
        )


RULES: tuple[Rule, ...] = (
    counting_is_no_optimization,
    held_out_documents_are_the_run_s,
    world_is_the_product_of_degrees,
    every_process_gets_a_row,
    nccl_needs_gpus,
    one_number_of_threads,
    rows_fit_the_model,
    ids_fit_the_model,
    trained_model_is_given,
    a_family_can_say_the_model,
    the_head_makes_vectors,
    decay_reaches_the_end,
    warmup_ends_before_the_run,
    warmup_and_decay_leave_room,
    inverse_sqrt_warms_up,
    best_is_looked_for,
    held_out_text_is_there,
    objective_fits_the_model,
    objective_fits_the_data,
    a_text_is_continued_from_the_left,
    blanks_have_two_positions,
    generator_can_be_built,
    sample_is_made,
    balance_over_the_batch_sees_all_of_it,
    cross_attention_stands_at_cross,
)
