"""Rules about jobs that start from a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from yaml import YAMLError  # type: ignore[import-untyped]

from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.target import target_for
from llmfactory.config.initial import run_of
from llmfactory.config.plain import to_plain
from llmfactory.config.saved import saved_config
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, Problem
from llmfactory.core.spec import stem
from llmfactory.data.tokenizer.spec import Split
from llmfactory.model.spec import ModelSpec
from llmfactory.objective.spec import answers_of
from llmfactory.stage.format.spec import Gguf
from llmfactory.stage.spec import Embed, Evaluate, Examine, Export, Extend, Fisher, Generate, Merge, Rejection


def trained_model_is_given(job: Job) -> Iterator[Problem]:
    if (
        not isinstance(job.stage, (Generate, Evaluate, Examine, Export, Embed, Extend, Fisher, Merge, Rejection))
        or job.init is not None
    ):
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


def a_text_is_continued_from_the_left(job: Job) -> Iterator[Problem]:
    if not isinstance(job.stage, (Generate, Rejection)):
        return
    name = stem(type(job.stage))
    graph, says = job.model.graph, answers_of(job.model)
    if graph == "encoder":
        reason = f"each of its tokens sees the whole text, so stage={name} finds nothing to continue"
        yield Problem("model", stem(type(job.model)), reason, "model=llama_tiny")
    elif graph == "two_stream":
        reason = f"it predicts a token from its query stream, in an order that stage={name} does not make"
        yield Problem("model", stem(type(job.model)), reason, "model=llama_tiny")
    elif graph == "words":
        reason = f"it has a vector for each word and predicts no next one, so stage={name} finds nothing to write"
        yield Problem("model", stem(type(job.model)), reason, "model=llama_tiny")
    elif says != "tokens":
        yield Problem("model.head", says, f"stage={name} needs a head that answers with tokens", "model/head=lm")


def gguf_knows_how_text_is_cut(job: Job) -> Iterator[Problem]:
    """llama.cpp cuts text by names of splits that it knows."""
    run = run_of(job.init) if job.init is not None and isinstance(job.stage, Export) else None
    if run is None or not isinstance(job.stage, Export) or not isinstance(job.stage.format, Gguf):
        return
    try:
        saved = saved_config(run)
        own = saved.get("init") is None and saved["data"]["tokenizer"]
    except (OSError, UnicodeDecodeError, YAMLError, ConfigError, KeyError, TypeError, AttributeError):
        return  # whoever reads the run says what is wrong with it
    if own and own.get("type") == "byte_bpe" and own.get("split") == Split.indent.name:
        reason = "GGUF has no name for the way that the run's tokenizer cuts text (data.tokenizer.split=indent; gpt2 and gpt4 have one)"
        yield Problem("stage.format", "gguf", reason, "stage/format=hf")


def held_out_documents_are_the_run_s(job: Job) -> Iterator[Problem]:
    """Another share of the same documents would hold out some that the model was trained on."""
    run = None if job.init is None else run_of(job.init)
    if run is None or not isinstance(job.stage, (Evaluate, Examine)):
        return
    try:
        saved = saved_config(run)["data"]
        same, share = saved["source"] == to_plain(job.data).get("source"), saved["held_out"]
    except (OSError, UnicodeDecodeError, YAMLError, ConfigError, KeyError, TypeError):
        return  # whoever reads the run says what is wrong with it
    if same and share != job.data.held_out:
        reason = f"the model of {run} was trained on all documents but the held-out {share}, so another share holds some of them"
        yield Problem("data.held_out", job.data.held_out, reason, f"data.held_out={share}")
