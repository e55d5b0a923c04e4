"""Write a model for other programs: one trained here, or a published one in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfactory.checkpoint import io
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.checkpoint.names.published import is_published, open_published
from llmfactory.checkpoint.names.target import Target, target_for
from llmfactory.checkpoint.published import check_shapes, stored_tensors
from llmfactory.checkpoint.tensors import model_tensors
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.core.spec import stem
from llmfactory.data.tokenizer.bytes import ByteTokenizer, as_pairs
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.parallel.mesh import device_type, open_world
from llmfactory.stage.base import insist_on_average, tensors_behind, trained_part
from llmfactory.stage.format.peft import Written, write_adapter
from llmfactory.stage.format.spec import Gguf, Peft
from llmfactory.stage.format.writer import Exported
from llmfactory.stage.initial import checkpoint_of, load_tokenizer
from llmfactory.stage.job import StageJob
from llmfactory.stage.spec import Export

COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "generation_config.json"),
)
"""Files of a published folder that are no weights and say nothing about the model's sizes."""

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_eos_token_id")
"""Keys of a published config.json that name tokens."""


class ExportJob(StageJob):
    """One process writes; the others of the job wait."""

    def __init__(self, spec: Export) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        checkpoint, path = checkpoint_of(job, "exporting"), Path(self.spec.path).expanduser()
        if isinstance(self.spec.format, Peft):
            return self.adapters(job, checkpoint, path, self.spec.format)
        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            exported = self.exported(job, checkpoint)
            world.once(lambda: self.write(exported, path))
        result = {"checkpoint": str(checkpoint), "exported": str(path), "family": exported.target.config["model_type"]}
        print(f"{path}: {result['family']}, {sum(tensor.numel() for tensor in exported.tensors.values()):,} numbers")
        return result

    def adapters(self, job: Job, checkpoint: Path, path: Path, spec: Peft) -> dict[str, Any]:
        written: list[Written] = []

        def write() -> None:
            insist_on_room(path)
            written.append(write_adapter(checkpoint, path, spec.base, job.init_trained))

        with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
            world.once(write)
            found = world.gather(written)[0][0]
        print(f"{path}: {found.kind} beside {found.base}, {found.numbers:,} numbers")
        return {"checkpoint": str(checkpoint), "exported": str(path), "peft_type": found.kind, "base": str(found.base)}

    def write(self, exported: Exported, path: Path) -> None:
        insist_on_room(path)
        self.spec.format.build().write(exported, path)

    def exported(self, job: Job, checkpoint: Path) -> Exported:
        tokenizer = load_tokenizer(checkpoint, job.model.vocab_size)
        if isinstance(tokenizer, ByteTokenizer):
            tokenizer = as_pairs()
        assert isinstance(tokenizer, HfTokenizer)
        target, tensors = self.target(job, checkpoint), tensors_of(job, checkpoint)
        if not is_published(checkpoint):
            return Exported(job.model, target, tensors, tokenizer)
        published = open_published(checkpoint)
        files = {name: published.path / name for name in COPIED if (published.path / name).is_file()}
        config = published.config
        return Exported(job.model, target, tensors, tokenizer, files, {key: config[key] for key in IDS if key in config})

    def target(self, job: Job, checkpoint: Path) -> Target:
        """The family that was asked for, that it comes from, or the first that can say it."""
        is_gguf = isinstance(self.spec.format, Gguf)
        if self.spec.family is None and is_published(checkpoint):
            try:
                return target_for(job.model, open_published(checkpoint).family.types[0], is_gguf)
            except Inexpressible:  # changed on the way in, or not of those that GGUF knows
                pass
        return target_for(job.model, self.spec.family, is_gguf)


def insist_on_room(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} is there already: remove it, or give another stage.path")


def tensors_of(job: Job, checkpoint: Path) -> dict[str, Tensor]:
    """Under our names, each in the format in which it is stored (quantized ones as float32)."""
    part = trained_part(checkpoint)
    if part is None and is_published(checkpoint):
        insist_on_average(checkpoint, job.init_trained)
        published = open_published(checkpoint)
        check_shapes(published)
        return stored_tensors(published, job.model)
    if part is not None:
        if not part.peft.merges:
            method = stem(type(part.peft))
            raise UserError(f"{checkpoint} was trained with peft={method}, which cannot be put into the model's own weights")
        return dict(tensors_behind(checkpoint, job.init_trained))
    saved = io.read_state(checkpoint)["tensors"]
    model = job.model.build()
    if any(entry["dtype"] == "float64" for entry in saved.values()):
        model.double()
    io.load_weights(checkpoint, model, trained=job.init_trained)
    return {name: tensor.to(getattr(torch, saved[name]["dtype"])) for name, tensor in model_tensors(model).items()}
