"""Continue a text and show the continuation while it comes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmfactory.config.spec import Job
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.form.template.prompt import chat_ids
from llmfactory.data.task.rewrite import start_id
from llmfactory.data.task.task import separator_id
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.inference.beam import beam_search
from llmfactory.inference.generate import Shortened, generate
from llmfactory.inference.sampler import Sampling
from llmfactory.inference.text import UNFINISHED, TextStream
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.stage.adapters import load_with, turns
from llmfactory.stage.evaluate import objective_of
from llmfactory.stage.initial import checkpoint_of, load_model, load_tokenizer
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Generate


class GenerateJob(StageJob):
    """Prints the first continuation token by token, further ones whole; the same seed gives the same texts."""

    def __init__(self, spec: Generate) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        spec, checkpoint = self.spec, checkpoint_of(job, "generating")
        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            precision = job.precision.build(world.device.type)
            model = self.model(job, checkpoint, precision, world)
            tokenizer = load_tokenizer(checkpoint, job.model.vocab_size)
            writer = Writer(shown=world.rank == 0)
            answers = spec.chat or job.model.graph == "encoder_decoder"  # instead of going on with the text
            writer.write(spec.prompt + ("\n" if answers else ""))
            objective = objective_of(checkpoint, job.model).build()
            vocabulary = Vocabulary(job.model.vocab_size, tokenizer)
            prompt, end_id = objective.prompt(prompt_ids(job.model.graph, tokenizer, spec), vocabulary)
            reading = {"end_id": end_id, "reading": objective.reading}
            found: dict[str, list[str]] = {}
            for name in turns(model, spec.adapters, spec.stacked) if spec.adapters else ("",):
                writer.write(f"\n--- {name}\n{spec.prompt}\n" if name and found else f"\n--- {name}\n" if name else "")
                streams = [TextStream(tokenizer, spec.stop) for _ in range(spec.samples)]
                with precision.forward_context(), shortened(writer):
                    continue_prompt(model, tokenizer, prompt, spec, job.seed, streams, writer, reading)
                for number, stream in enumerate(streams[1:], start=2):
                    writer.write(f"\n--- sample {number} of {spec.samples}\n{spec.prompt}{stream.text}\n")
                found[name] = [stream.text for stream in streams]
        return {"checkpoint": str(checkpoint), "prompt": spec.prompt, "texts": found if spec.adapters else found[""]}

    def model(self, job: Job, checkpoint: Path, precision: MeshPrecision, world: World) -> Skeleton:
        """That of `init`, with adapters beside it where some are named."""
        if not self.spec.adapters:
            return load_model(job, checkpoint, precision, world)
        return load_with(job, checkpoint, self.spec.adapters, self.spec.adapter_weights, precision, world)


def prompt_ids(graph: str, tokenizer: Tokenizer, spec: Generate) -> list[int]:
    """The prompt as the model reads it: a text from its beginning, or a question in a conversation; whole for an encoder."""
    if graph == "encoder_decoder" and not spec.chat:
        return [*tokenizer.encode(spec.prompt), separator_id(tokenizer)]
    if not spec.chat:
        ids = [*tokenizer.usage.begin_ids, *tokenizer.encode(spec.prompt)]
        return ids or [tokenizer.end_id]  # something must be there to be continued
    messages = [] if spec.system is None else [{"role": "system", "content": spec.system}]
    return chat_ids(tokenizer, [*messages, {"role": "user", "content": spec.prompt}])


def continue_prompt(
    model: Skeleton,
    tokenizer: Tokenizer,
    prompt: list[int],
    spec: Generate,
    seed: int,
    streams: list[TextStream],
    writer: Writer,
    reading: dict[str, Any],
) -> None:
    """Fill a stream for each sample; the first one is written while it comes.

    `reading`: how the model reads the prompt, and the token that ends what it writes.
    """

    def on_token(row: int, token: int) -> bool:
        if token in tokenizer.usage.stop_ids:
            return True
        shown = streams[row].push(token)
        if row == 0:
            writer.write(shown)
        return streams[row].stopped

    ends: dict[str, Any] = {
        **reading,
        "start_id": start_id(tokenizer),
        "vocab_size": tokenizer.vocab_size,
    }
    if spec.beams > 1:
        options = {"beams": spec.beams, "length_penalty": spec.length_penalty, "max_tokens": spec.max_tokens}
        for token in beam_search(model, [prompt], **options, **ends)[0]:  # type: ignore[arg-type]
            if on_token(0, token):
                break
    else:
        generate(
            model,
            [prompt] * len(streams),
            max_tokens=spec.max_tokens,
            sampling=sampling_of(spec),
            **ends,
            seed=seed,
            on_token=on_token,
        )
    for row, stream in enumerate(streams):
        rest = stream.finish()
        if row == 0:
            writer.write(rest + "\n")


def sampling_of(spec: Generate) -> Sampling:
    """How tokens are drawn."""
    return Sampling(
        temperature=spec.temperature,
        top_k=spec.top_k,
        top_p=spec.top_p,
        min_p=spec.min_p,
        repetition_penalty=spec.repetition_penalty,
    )


@contextmanager
def shortened(writer: Writer) -> Iterator[None]:
    """Say in words, at the end, that something was cut."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Shortened)
        yield
    for warning in caught:
        if issubclass(warning.category, Shortened):
            if writer.shown:
                print(f"note: {warning.message}", file=sys.stderr)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def printable(text: str) -> str:
    """For a terminal: a model may write escape sequences, which must not be obeyed."""
    return "".join(c if c in "\n\t" or c.isprintable() else UNFINISHED for c in text)


class Writer:
    """Prints at once, on one process."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def write(self, text: str) -> None:
        if self.shown and text:
            print(printable(text), end="", flush=True)
