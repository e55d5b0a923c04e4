"""Put the weights of several models together, tensor by tensor, and write a checkpoint that `init=outputs/<run>` takes.

At any time one tensor of each model is in memory (a few more where models store them in another order); what is made lies in
files mapped into memory until the checkpoint is written.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from llmfactory.checkpoint import io
from llmfactory.checkpoint.names.published import is_published
from llmfactory.checkpoint.tensors import Contents, model_tensors
from llmfactory.config.plain import to_plain
from llmfactory.config.saved import CONFIG, saved_spec
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.core.spec import stem
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.tokenizer import FOLDER, Tokenizer
from llmfactory.model.spec import ModelSpec
from llmfactory.parallel.mesh import World
from llmfactory.stage.base import tensors_behind, trained_part
from llmfactory.stage.evaluate import objective_of
from llmfactory.stage.initial import checkpoint_of, load_tokenizer
from llmfactory.stage.job import StageJob
from llmfactory.stage.judges import find, model_spec
from llmfactory.stage.merge_spec import INIT, Merge
from llmfactory.stage.spec import Pretrain, StageSpec, TrainingSpec

WORK = "work"
PASSING = ("dropout", "std", "max_positions")
"""Ends of keys in which models may differ: they say how a model is trained, or what it is used for."""
SHOWN = 3
"""Differences that a message names."""


class MergeJob(StageJob):
    def __init__(self, spec: Merge) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        assert folder is not None  # this stage keeps one
        places = {INIT: checkpoint_of(job, "merging"), **{name: find(path) for name, path in self.spec.models.items()}}
        model = _alike(places)
        tokenizer = self._tokenizer(places, model.vocab_size)
        weights = {name: self.spec.weights.get(name, 1.0) for name in places}
        told = Told(places)
        work = folder / WORK
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        made = {
            name: mapped(work / f"{number}.bin", tensor)
            for number, (name, tensor) in enumerate(self._merged(job, places, weights, told))
        }
        _insist_on_all(model, made, places[INIT])
        path = self._written(job, folder, places[INIT], model, tokenizer, made)
        del made
        shutil.rmtree(work)
        rows = [[name, str(places[name]), f"{weights[name]:g}", f"{of:.4%}"] for name, of in told.shares().items()]
        table = ("models", [["name", "model", "weight", "change, of the weights of init"], *rows])
        print(f"{path}: {stem(type(self.spec.method))} of {', '.join(places)}")
        return {
            "checkpoint": str(path),
            "models": {n: str(p) for n, p in places.items()},
            "changes": told.shares(),
            "tables": [table],
        }

    def _merged(
        self, job: Job, places: Mapping[str, Path], weights: Mapping[str, float], told: Told
    ) -> Iterator[tuple[str, Tensor]]:
        method = self.spec.method.build(job.seed)
        for name, tensors in aligned({model: tensors_behind(path) for model, path in places.items()}, places):
            if not tensors[INIT].is_floating_point():
                yield name, tensors[INIT]
                continue
            wide = {model: tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for model, tensor in tensors.items()}
            base = wide.pop(INIT)
            told.see(base, wide)
            found = method.merged(name, base, wide, weights)
            if not found.isfinite().all():
                raise UserError(
                    f"the tensor {name} would hold numbers that are infinite or none at all: one of the models does already"
                )
            yield name, found

    def _tokenizer(self, places: Mapping[str, Path], vocab_size: int) -> Tokenizer:
        """That of the new model. Raises UserError where models know other tokens by the same ids."""
        known = {name: load_tokenizer(path, vocab_size) for name, path in places.items()}
        pieces = {name: vocabulary(tokenizer) for name, tokenizer in known.items()}
        for name, its in pieces.items():
            other = next((token for token, number in its.items() if pieces[INIT].get(token, number) != number), None)
            if type(known[name]) is not type(known[INIT]) or other is not None or _clash(its, pieces[INIT]):
                reason = f", e.g. {other!r}" if other is not None else ""
                raise UserError(
                    f"{places[name]} reads other tokens than {places[INIT]}{reason}: the same rows of their tables mean other things, "
                    "so that they cannot be merged"
                )
        if self.spec.tokenizer is not None:
            return known[self.spec.tokenizer]
        return next((one for one in known.values() if one.usage.chat_template is not None), known[INIT])

    def _written(
        self, job: Job, folder: Path, init: Path, model: ModelSpec, tokenizer: Tokenizer, made: dict[str, Tensor]
    ) -> Path:
        config = to_plain(replace(job, model=model, init=None, stage=_stage_of(init, model)))

        def attach(place: Path) -> None:
            tokenizer.save(place / FOLDER)
            (place / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")

        (folder / "checkpoints").mkdir(exist_ok=True)
        tokenizer.save(folder / FOLDER)
        with io.quiet():
            return io.write(folder / "checkpoints", 0, Contents(made, {}), {}, World(torch.device("cpu")), attach)


class Told:
    """How far each model has moved from `init`."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.moved = {name: 0.0 for name in places if name != INIT}
        self.size = 0.0

    def see(self, base: Tensor, others: Mapping[str, Tensor]) -> None:
        self.size += base.double().square().sum().item()
        for name, other in others.items():
            self.moved[name] += (other - base).double().square().sum().item()

    def shares(self) -> dict[str, float]:
        """Of each model the norm of its changes, as a share of that of the weights of `init`."""
        return {name: math.sqrt(moved / self.size) if self.size else 0.0 for name, moved in self.moved.items()}


def aligned(
    streams: Mapping[str, Iterator[tuple[str, Tensor]]], places: Mapping[str, Path]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each tensor of `init` with those of the same name of the others. Raises UserError where one is missing or of another shape."""
    early: dict[str, dict[str, Tensor]] = {model: {} for model in streams}
    for name, base in streams[INIT]:
        found = {INIT: base}
        for model in (model for model in streams if model != INIT):
            while name not in early[model]:
                following = next(streams[model], None)
                if following is None:
                    raise UserError(
                        f"{places[model]} has no tensor {name}, which {places[INIT]} has: they are models of other kinds"
                    )
                early[model][following[0]] = following[1]
            found[model] = early[model].pop(name)
            if found[model].shape != base.shape:
                shapes = [list(one.shape) for one in (found[model], base)]
                raise UserError(f"the tensor {name} is {shapes[0]} in {places[model]}, and {shapes[1]} in {places[INIT]}")
        yield name, found
    for model, left in early.items():
        more = next(iter(left), None) or (next(streams[model], ("", None))[0] if model != INIT else "")
        if more:
            raise UserError(f"{places[model]} has a tensor {more}, which {places[INIT]} has not: they are models of other kinds")


def mapped(path: Path, tensor: Tensor) -> Tensor:
    """The tensor in a file instead of memory."""
    if tensor.numel() == 0:
        return tensor
    kept = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype).reshape(tensor.shape)
    return kept.copy_(tensor)


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """The id of each token that has a name."""
    if isinstance(tokenizer, HfTokenizer):
        return dict(tokenizer.inner.get_vocab(with_added_tokens=True))
    return tokenizer.specials()


def _clash(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether an id is two tokens."""
    names = {number: name for name, number in one.items()}
    return any(names.get(number, name) != name for name, number in other.items())


def _alike(places: Mapping[str, Path]) -> ModelSpec:
    """The spec that all models share. Raises UserError where one differs, naming the keys."""
    specs = {name: model_spec(path) for name, path in places.items()}
    for name, path in places.items():
        part = trained_part(path)
        if part is not None and not part.peft.merges:
            method = stem(type(part.peft))
            raise UserError(
                f"{path} was trained with peft={method}, which cannot be put into the model's own weights, nor merged"
            )
        wrong = list(_differences(to_plain(specs[name]), to_plain(specs[INIT])))
        if wrong:
            shown = "; ".join(wrong[:SHOWN]) + ("; ..." if len(wrong) > SHOWN else "")
            raise UserError(f"{path} is another model than {places[INIT]}, so that they cannot be merged: {shown}")
    return specs[INIT]


def _differences(one: Any, other: Any, key: str = "model") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*one, *other]):
            yield from _differences(one.get(name), other.get(name), f"{key}.{name}")
    elif one != other and not key.endswith(PASSING):
        yield f"{key} is {one!r} there and {other!r} here"


def _insist_on_all(model: ModelSpec, made: Mapping[str, Tensor], init: Path) -> None:
    """The checkpoint holds the tensors of the model, no more and no less: so `init=` can take it."""
    with torch.device("meta"):
        wanted = model_tensors(model.build())
    missing, extra = sorted(set(wanted) - set(made)), sorted(set(made) - set(wanted))
    if missing or extra:
        named = f"lacks {missing[0]}" if missing else f"has {extra[0]} besides"
        raise UserError(f"{init} {named}: it is not the model that its config says")


def _stage_of(init: Path, model: ModelSpec) -> TrainingSpec:
    """What the new model is measured by: what that of `init` was trained on."""
    saved = None if is_published(init) else saved_spec(init, StageSpec, "stage")
    return saved if isinstance(saved, TrainingSpec) else Pretrain(objective=objective_of(init, model))
