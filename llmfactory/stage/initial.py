"""What a job starts with: `init` names a run folder, one of its checkpoints, or a published model (HF folder, GGUF file).

A run folder means its newest checkpoint. Each checkpoint carries the tokenizer that its model reads with; data are read with
that one too, whatever tokenizer the config would train on them: other ids would be noise to the model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmfactory.checkpoint import io
from llmfactory.checkpoint.names.published import GGUF, is_published, open_published
from llmfactory.checkpoint.published import load_published
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.data.spec import Corpus
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.spec import Bytes, GgufFile, HfFile, TokenizerSpec
from llmfactory.data.tokenizer.tokenizer import FOLDER, Tokenizer, load
from llmfactory.model.skeleton import Skeleton
from llmfactory.objective.objective import Objective
from llmfactory.parallel.mesh import World
from llmfactory.precision.plugin import MeshPrecision


def checkpoint_of(job: Job, need: str) -> Path:
    """The checkpoint that `init` means; `need` says in a message what it is for."""
    if job.init is None:
        raise ConfigError([Problem("init", None, f"{need} needs a trained model", "init=outputs/<run>")])
    path = Path(job.init).expanduser()
    return path if is_published(path) else io.find(path)


def fill(model: Skeleton, checkpoint: Path) -> None:
    """The weights of a checkpoint into a plain model, in the model's own format."""
    if is_published(checkpoint):
        load_published(open_published(checkpoint), model)
    else:
        model.make_room(io.read_state(checkpoint)["tensors"])
        io.load_weights(checkpoint, model)


def load_model(
    job: Job, checkpoint: Path, precision: MeshPrecision, world: World, objective: Objective | None = None
) -> Skeleton:
    """The job's model with the weights of a checkpoint, on this process's device, in evaluation mode.

    With `objective`, also what it was trained on beside the model.
    """
    model = job.model.build()
    if objective is not None:
        objective.equip(model)
    precision.convert_module(model)  # first: weights kept in float64 must not pass through float32
    fill(model, checkpoint)
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
        return HfFile(file=str(checkpoint))
    kept = load(checkpoint / FOLDER)
    return Bytes() if isinstance(kept, ByteTokenizer) else HfFile(file=str(checkpoint / FOLDER))


def corpus_for(corpus: Corpus, checkpoint: Path) -> Corpus:
    """The corpus, read with the checkpoint's tokenizer."""
    return replace(corpus, tokenizer=tokenizer_of(checkpoint))
