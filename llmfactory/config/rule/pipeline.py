"""Rules about layers that are dealt to the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from llmfactory.config.rule.degrees import with_degrees
from llmfactory.config.spec import Job
from llmfactory.core.errors import Problem
from llmfactory.model.spec import EncoderDecoder, ModelSpec, Multimodal, Recurrent, TextSpec
from llmfactory.objective.spec import ReplacedToken
from llmfactory.parallel.spec import Mesh, Schedule
from llmfactory.stage.spec import TrainingSpec


def every_stage_has_a_layer(job: Job) -> Iterator[Problem]:
    layout = _pipeline(job)
    if layout is None:
        return
    layers, stages = _layers(job.model), layout.pp * layout.stages_per_process
    if layers == 0:
        yield Problem("parallel.pp", layout.pp, "the model has no layers that could be dealt to stages", no_pipeline(job, layout))
    elif layers < layout.pp:
        reason = f"the model has {layers} layers, and each process needs one"
        yield Problem("parallel.pp", layout.pp, reason, no_pipeline(job, layout))
    elif layers < stages:
        reason = f"the model has {layers} layers, and each of {stages} stages needs one"
        if layout.schedule is Schedule.zero_bubble_v:
            yield Problem("parallel.schedule", layout.schedule.name, reason, "parallel.schedule=one_f_one_b")
        else:
            repair = f"parallel.virtual_stages={layers // layout.pp}"
            yield Problem("parallel.virtual_stages", layout.virtual_stages, reason, repair)


def micro_batches_fill_the_pipeline(job: Job) -> Iterator[Problem]:
    layout = _pipeline(job)
    if layout is None or not isinstance(job.stage, TrainingSpec):
        return
    ranks, batch = layout.data_degree(job.launch.world()), job.trainer.batch_size
    rows = -(-batch // ranks)
    size = job.trainer.micro_batch_size or rows
    count = -(-rows // size)
    if layout.fills_pipeline(count):
        return
    wanted = "at least as many" if count < layout.pp else "a multiple of that"
    reason = (
        f"the {rows} rows of a process are {count} micro-batch{'es' if count > 1 else ''}, but the schedule "
        f"{layout.schedule.name} of {layout.pp} processes (parallel.pp) needs {wanted}"
    )
    sizes = sorted(range(1, rows + 1), key=lambda size: (rows % size > 0, -size))  # even ones first
    fitting = next((size for size in sizes if layout.fills_pipeline(-(-rows // size))), None)
    if fitting is None:
        whole = ranks * layout.pp
        fitting, repair = 1, f"trainer.batch_size={-(-batch // whole) * whole} "
    else:
        repair = ""
    yield Problem("trainer.micro_batch_size", job.trainer.micro_batch_size, reason, f"{repair}trainer.micro_batch_size={fitting}")


def a_pipeline_deals_out_one_model(job: Job) -> Iterator[Problem]:
    layout = _pipeline(job)
    if layout is not None and isinstance(job.stage, TrainingSpec) and isinstance(job.stage.objective, ReplacedToken):
        reason = "the generator is a second model, whose answers the first stage reads, and a pipeline deals out one model"
        yield Problem("parallel.pp", layout.pp, reason, no_pipeline(job, layout))


def split_backwards_keep_what_they_need(job: Job) -> Iterator[Problem]:
    """Each part of the weights' backward pass would compute its block again."""
    layout = _pipeline(job)
    if layout is not None and layout.recompute and layout.schedule in (Schedule.zero_bubble, Schedule.zero_bubble_v):
        reason = f"parallel.schedule={layout.schedule.name} splits backward passes, and each part would compute the block again"
        yield Problem("parallel.recompute", True, reason, "parallel.schedule=one_f_one_b")


def virtual_stages_are_asked_for(job: Job) -> Iterator[Problem]:
    layout = job.parallel
    looped = isinstance(layout, Mesh) and layout.pp > 1 and layout.schedule in (Schedule.interleaved, Schedule.zero_bubble)
    if isinstance(layout, Mesh) and layout.virtual_stages != 2 and not looped:
        reason = "says nothing: only parallel.schedule=interleaved and zero_bubble take it, with parallel.pp above 1"
        yield Problem("parallel.virtual_stages", layout.virtual_stages, reason, "parallel.virtual_stages=2")


def _pipeline(job: Job) -> Mesh | None:
    return job.parallel if isinstance(job.parallel, Mesh) and job.parallel.pp > 1 else None


def _layers(model: ModelSpec) -> int:
    """Layers that can be dealt out, one after the other."""
    if isinstance(model, EncoderDecoder):
        return model.encoder.n_layers + model.decoder.n_layers
    if isinstance(model, Multimodal):
        vision = model.vision
        return (vision.n_layers if vision.layers_used is None else vision.layers_used) + model.n_layers
    return model.n_layers if isinstance(model, (TextSpec, Recurrent)) else 0


def no_pipeline(job: Job, layout: Mesh) -> str:
    """Overrides that give the processes to data parallelism."""
    neutral = [] if layout.schedule is Schedule.one_f_one_b else ["parallel.schedule=one_f_one_b"]
    neutral += [] if layout.virtual_stages == 2 else ["parallel.virtual_stages=2"]
    return " ".join([with_degrees(job, pp=1), *neutral])
