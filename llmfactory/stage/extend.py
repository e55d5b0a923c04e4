"""A trained model for text that its tokenizer spells in too many pieces (Cui et al. 2023): new pieces, and rows for them.

What it writes is a run folder to start from: `init=<path>` trains the model on the new text, with
`stage.embeddings_only_steps` its new rows first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from llmfactory.checkpoint import io
from llmfactory.config.plain import to_plain
from llmfactory.config.saved import CONFIG, saved_spec
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.data.prepare import prepare
from llmfactory.data.prepared import Prepared
from llmfactory.data.spec import DocumentsSpec
from llmfactory.data.tokenizer.any_file import read_any
from llmfactory.data.tokenizer.extended import pieces_of
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import Extended, HfFile
from llmfactory.data.tokenizer.tokenizer import FOLDER, Tokenizer, lacking
from llmfactory.model.resize import resize
from llmfactory.parallel.mesh import device_type, open_world
from llmfactory.stage.initial import checkpoint_of, load_model, tokenizer_of
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Extend, StageSpec, TrainingSpec

LOOK = 1 << 20
"""Bytes of each source's held-out text that lengths are told from."""


class ExtendJob(StageJob):
    def __init__(self, spec: Extend) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        checkpoint, path = checkpoint_of(job, "extending"), Path(self.spec.path).expanduser()
        if path.exists():
            raise UserError(f"{path} is there already: remove it, or give another stage.path")
        assert isinstance(job.data, DocumentsSpec)  # rules: documents, and a tokenizer that is extended
        assert isinstance(job.data.tokenizer, Extended)
        source = job.data.tokenizer.base or str(getattr(tokenizer_of(checkpoint), "file", checkpoint))
        old = read_any(Path(source))
        _insist_on_no_other_tokens(checkpoint, old)
        wanted = replace(job.data, tokenizer=replace(job.data.tokenizer, base=source))
        prepared = prepare(wanted, old.vocab_size + job.data.tokenizer.new_tokens)
        assert isinstance(prepared.tokenizer, HfTokenizer)
        self.write(job, checkpoint, old, prepared.tokenizer, path)
        lengths = list(bytes_per_token(prepared, old))
        result = {
            "checkpoint": str(checkpoint),
            "extended": str(path),
            "new_tokens": prepared.tokenizer.vocab_size - old.vocab_size,
            "vocab_size": max(job.model.vocab_size, prepared.tokenizer.vocab_size),
            "bytes_per_token": {name: {"before": before, "after": after} for name, before, after in lengths},
            "tables": [
                ("bytes per token", [["source", "before", "after"], *([n, f"{b:.3f}", f"{a:.3f}"] for n, b, a in lengths)])
            ],
        }
        print(f"{path}: {result['new_tokens']} new tokens, {result['vocab_size']} in all")
        for name, before, after in lengths:
            print(f"{name}: {before:.3f} bytes per token before, {after:.3f} now")
        return result

    def write(self, job: Job, checkpoint: Path, old: HfTokenizer, new: HfTokenizer, path: Path) -> None:
        """A run folder with a checkpoint of step 0."""
        if (have := job.model.vocab_size) < old.vocab_size:
            raise UserError(f"the tokenizer has {old.vocab_size} ids, the model of {checkpoint} only {have}: it is another one's")
        model = replace(job.model, vocab_size=max(have, new.vocab_size))
        data = replace(job.data, tokenizer=HfFile(file=str(path / FOLDER)))
        config = to_plain(replace(job, model=model, data=data, init=None))

        def attach(place: Path) -> None:
            new.save(place / FOLDER)
            (place / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")

        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            precision = job.precision.build("meta")  # weights are moved about, and nothing is computed
            before, after = load_model(job, checkpoint, precision, world).to("cpu"), model.build()
            precision.convert_module(after)
            resize(before, after, pieces_of(old, new), old.vocab_size, self.spec.begin, job.seed)
            (path / "checkpoints").mkdir(parents=True)
            attach(path)
            io.save(path / "checkpoints", 0, after, None, {}, world, attach)


def bytes_per_token(prepared: Prepared, old: Tokenizer) -> Iterator[tuple[str, float, float]]:
    """Of each source's held-out text (or else of its training text): bytes per token before and now."""
    for name, source in prepared.sources.items():
        tokens = source.held_out if source.held_out.documents else source.train
        size = before = after = 0
        for number in range(tokens.documents):
            ids = tokens.document(number)
            text = prepared.tokenizer.decode(ids)
            size += len(text.encode(errors="replace"))
            before, after = before + len(old.encode_arrays([text])[0]), after + len(ids)
            if size >= LOOK:
                break
        yield name, size / max(1, before), size / max(1, after)


def _insist_on_no_other_tokens(checkpoint: Path, tokenizer: Tokenizer) -> None:
    """Special tokens of an objective that the tokenizer lacks are the model's highest ids, which would be other ones now."""
    stage = saved_spec(checkpoint, StageSpec, "stage") if checkpoint.is_dir() else None
    if isinstance(stage, TrainingSpec) and (count := lacking(tokenizer, stage.objective.specials())):
        raise UserError(
            f"the model of {checkpoint} was trained with {count} special tokens that its tokenizer lacks; they are its highest ids, "
            "which more tokens would move. Begin with a tokenizer that has them: data.tokenizer.special_tokens=[...]"
        )
