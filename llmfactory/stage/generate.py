"""Continue a text and show the continuation while it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmfactory.config.spec import Job
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.inference.generate import generate
from llmfactory.parallel.mesh import device_type, open_world
from llmfactory.parallel.spec import Mesh
from llmfactory.stage.initial import checkpoint_of, load_model, load_tokenizer
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Generate

UNFINISHED = "\ufffd"
"""What a character decodes to while some of its bytes are still missing."""


class GenerateJob(StageJob):
    """Prints the first continuation token by token, further ones whole; the same seed gives the same texts."""

    def __init__(self, spec: Generate) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        spec, checkpoint = self.spec, checkpoint_of(job, "generating")
        assert isinstance(job.parallel, Mesh)
        with open_world(job.parallel, device_type(job.trainer.device)) as world:
            precision = job.precision.build(world.device.type)
            model = load_model(job, checkpoint, precision, world)
            tokenizer = load_tokenizer(checkpoint)
            prompt = [tokenizer.end_id, *tokenizer.encode(spec.prompt)]
            writer = Writer(tokenizer, shown=world.rank == 0)
            writer.write(spec.prompt)
            with precision.forward_context():
                rows = generate(
                    model,
                    [prompt] * spec.samples,
                    max_tokens=spec.max_tokens,
                    temperature=spec.temperature,
                    top_k=spec.top_k,
                    top_p=spec.top_p,
                    end_id=tokenizer.end_id,
                    vocab_size=tokenizer.vocab_size,
                    seed=job.seed,
                    on_token=writer.token,
                )
            writer.finish()
            texts = [tokenizer.decode(row) for row in rows]
            for number, text in enumerate(texts[1:], start=2):
                writer.write(f"\n--- sample {number} of {spec.samples}\n{spec.prompt}{text}\n")
        return {"checkpoint": str(checkpoint), "prompt": spec.prompt, "texts": texts}


def printable(text: str) -> str:
    """For a terminal: a model may write escape sequences, which must not be obeyed."""
    return "".join(c if c in "\n\t" or c.isprintable() else UNFINISHED for c in text)


class Writer:
    """Prints text as its tokens arrive; a character whose bytes are not all there waits for the rest.

    Some tokenizers write a token differently at the start of a text, so a token is decoded behind those before it: always
    from the last place at which the text was whole.
    """

    def __init__(self, tokenizer: Tokenizer, shown: bool) -> None:
        self.tokenizer, self.shown = tokenizer, shown
        self.before: list[int] = []
        self.pending: list[int] = []

    def write(self, text: str) -> None:
        if self.shown:
            print(printable(text), end="", flush=True)

    def token(self, row: int, token: int) -> None:
        if row != 0:
            return
        self.pending.append(token)
        text = self._text()
        if not text.endswith(UNFINISHED):
            self.write(text)
            self.before, self.pending = self.pending, []

    def finish(self) -> None:
        """End the line; what never became whole is shown as it is."""
        self.write(self._text() + "\n")

    def _text(self) -> str:
        return self.tokenizer.decode(self.before + self.pending)[len(self.tokenizer.decode(self.before)) :]
