"""What a job starts with: `init` names a run folder, one of its checkpoints, or a published model (HF folder, GGUF file).

A run folder means its newest checkpoint. Each checkpoint carries the tokenizer that its model reads with; data are read with
that one too, whatever tokenizer the config would train on them: other ids would be noise to the model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from llmfactory.checkpoint import io
from llmfactory.checkpoint.names.published import GGUF, is_published, open_published
from llmfactory.checkpoint.published import load_published
from llmfactory.checkpoint.tensors import all_tensors, describe, starting_tensors, united, without
from llmfactory.config.saved import saved_spec
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.data.spec import DataSpec
from llmfactory.data.tokenizer.spec import GgufFile, HfFile, TokenizerSpec
from llmfactory.data.tokenizer.tokenizer import FOLDER, Tokenizer
from llmfactory.model.packed import packed
from llmfactory.model.part import use
from llmfactory.model.skeleton import COMPANION, Skeleton
from llmfactory.model.spec import ModelSpec
from llmfactory.objective.objective import Objective
from llmfactory.parallel.mesh import World
from llmfactory.parallel.weights import local, put
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.stage.base import Trained, insist_on_adapters, insist_on_average, tensors_behind, trained_part

D = TypeVar("D", bound=DataSpec)


def checkpoint_of(job: Job, need: str) -> Path:
    """The checkpoint that `init` means; `need` says in a message what it is for."""
    if job.init is None:
        raise ConfigError([Problem("init", None, f"{need} needs a trained model", "init=outputs/<run>")])
    path = Path(job.init).expanduser()
    return path if is_published(path) else io.find(path)


HEAD = "head."
"""Names of a head's tensors begin so."""


def fill(model: Skeleton, checkpoint: Path, new: str | None = None, world: World | None = None, trained: bool = False) -> None:
    """The weights of a checkpoint into a model, in the model's own format.

    `new`: beginning of the names of a part that is not the checkpoint's: it is left alone. `world`: the processes over which
    the model is laid out, all of which call this; None: it is whole. `trained`: of a run that averaged its weights, those that it
    trained.
    """
    error: UserError | None = None
    try:
        part = trained_part(checkpoint)
        if part is not None:
            _fill_from_part(part, model, new, world, trained)
        elif is_published(checkpoint):
            insist_on_average(checkpoint, trained)
            load_published(open_published(checkpoint), model, new, world)
        else:
            model.make_room(io.read_state(checkpoint)["tensors"])
            io.load_weights(checkpoint, model, new, world, trained)
        broken = next((name for name, weight in model.named_parameters() if not local(weight).isfinite().all()), None)
        if broken is not None:
            raise UserError(f"{checkpoint}: the tensor {broken} holds numbers that are infinite or none at all")
    except UserError as caught:
        error = caught
    for found in [error] if world is None else world.gather(error):
        if found is not None:
            raise found


def _fill_from_part(part: Trained, model: Skeleton, new: str | None, world: World | None, trained: bool) -> None:
    """Of a run that trained a part of its model: every process reads all tensors and keeps its pieces."""
    donor = part.donor()
    room, saved = starting_tensors(model), describe(starting_tensors(donor))
    if not part.peft.merges:
        insist_on_adapters(part, model)
        room |= {name: tensor for name, tensor in all_tensors(model).items() if name in part.tensors}
        saved |= {name: entry for name, entry in part.tensors.items() if name in donor.added}
    saved |= {name: entry for name, entry in part.tensors.items() if name.startswith(COMPANION) and name in room}
    room, saved = without(room, new), without(saved, new)
    io.insist_same(part.checkpoint, describe(room) if world is None else united(room, world), saved)
    matrices = packed(model)
    for name, tensor in tensors_behind(part.checkpoint, trained):
        if name in matrices:
            for parameter, content in matrices[name].contents(tensor):
                put(parameter, content)
        elif name in room:
            put(room[name], tensor)


def has_new_head(model: Skeleton, checkpoint: Path) -> bool:
    """Whether the model has another head than the checkpoint: it will answer other questions, and starts anew."""
    if is_published(checkpoint):
        before: ModelSpec | None = open_published(checkpoint).spec
    else:
        before = saved_spec(checkpoint, ModelSpec, "model")
    if before is None:
        return False
    with torch.device("meta"):
        old = before.build()
    kinds = [type(getattr(spec, "head", None)) for spec in (model.spec, before)]
    shapes = [{name: w.shape for name, w in one.named_parameters() if name.startswith(HEAD)} for one in (model, old)]
    return kinds[0] is not kinds[1] or shapes[0] != shapes[1]


def model_of(job: Job) -> Skeleton:
    """The job's model outside of training: with the adapters that cannot stand in its weights."""
    model = job.model.build()
    if not job.peft.merges:
        job.peft.apply(model)
    use(model, job.trainer.kernel)
    return model


def load_model(
    job: Job, checkpoint: Path, precision: MeshPrecision, world: World, objective: Objective | None = None
) -> Skeleton:
    """The job's model with the weights of a checkpoint, on this process's device, in evaluation mode.

    With `objective`, also what it was trained on beside the model.
    """
    model = model_of(job)
    if objective is not None:
        objective.equip(model)
    precision.convert_module(model)  # first: weights kept in float64 must not pass through float32
    fill(model, checkpoint, trained=job.init_trained)
    model.to(world.device).eval()
    return model


def load_tokenizer(checkpoint: Path, vocab_size: int) -> Tokenizer:
    """That of a checkpoint, whose ids must all be below the model's `vocab_size`."""
    return tokenizer_of(checkpoint).build(vocab_size).make(())


def tokenizer_of(checkpoint: Path) -> TokenizerSpec:
    """What reads the tokenizer that comes with a checkpoint."""
    if checkpoint.suffix == GGUF:
        return GgufFile(file=str(checkpoint))
    if is_published(checkpoint):
        return HfFile(file=str(open_published(checkpoint).path))
    return HfFile(file=str(checkpoint / FOLDER))


def data_for(data: D, checkpoint: Path) -> D:
    """The data, read with the checkpoint's tokenizer."""
    return replace(data, tokenizer=tokenizer_of(checkpoint))
