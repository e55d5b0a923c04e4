"""What a job starts with: `init` names a run folder, or one of its checkpoints.

A run folder means its newest checkpoint. Each checkpoint carries the tokenizer that its model reads with; data are read with
that one too, whatever tokenizer the config would train on them: other ids would be noise to the model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmfactory.checkpoint.io import find, load_weights
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.data.spec import Corpus
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import Bytes, HfFile, TokenizerSpec
from llmfactory.data.tokenizer.tokenizer import FOLDER, Tokenizer, load
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World
from llmfactory.precision.plugin import MeshPrecision


def checkpoint_of(job: Job, need: str) -> Path:
    """The checkpoint that `init` means; `need` says in a message what it is for."""
    if job.init is None:
        raise ConfigError([Problem("init", None, f"{need} needs a trained model", "init=outputs/<run>")])
    return find(Path(job.init).expanduser())


def load_model(job: Job, checkpoint: Path, precision: MeshPrecision, world: World) -> Skeleton:
    """The job's model with the weights of a checkpoint, on this process's device, in evaluation mode."""
    model = job.model.build()
    precision.convert_module(model)  # first: weights kept in float64 must not pass through float32
    load_weights(checkpoint, model)
    model.to(world.device).eval()
    return model


def load_tokenizer(checkpoint: Path) -> Tokenizer:
    return load(checkpoint / FOLDER)


def corpus_for(corpus: Corpus, checkpoint: Path) -> Corpus:
    """The corpus, read with the checkpoint's tokenizer."""
    tokenizer = load_tokenizer(checkpoint)
    spec: TokenizerSpec
    if isinstance(tokenizer, ByteTokenizer):
        spec = Bytes()
    elif isinstance(tokenizer, HfTokenizer):
        spec = HfFile(file=str(checkpoint / FOLDER), end_token=tokenizer.inner.id_to_token(tokenizer.end_id))
    else:
        raise TypeError(f"{type(tokenizer).__name__} has no spec that reads it back")
    return replace(corpus, tokenizer=spec)
