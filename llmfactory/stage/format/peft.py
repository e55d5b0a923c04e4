"""A folder that `peft.PeftModel.from_pretrained(base, folder)` loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llmfactory.checkpoint.adapter import to_folder
from llmfactory.checkpoint.files import discard, publish
from llmfactory.checkpoint.names.adapter import BASE, CONFIG, WEIGHTS
from llmfactory.checkpoint.names.adapter_method import Config, Outgoing
from llmfactory.checkpoint.names.adapter_methods import method_for
from llmfactory.checkpoint.names.folder import is_adapter
from llmfactory.checkpoint.names.published import Published, is_published, open_published
from llmfactory.checkpoint.names.target import target_for
from llmfactory.checkpoint.published import read, tensors_of
from llmfactory.core.errors import UserError
from llmfactory.core.spec import stem
from llmfactory.optim.average.average import TRAINED
from llmfactory.stage.base import Trained, tensors_behind, trained_part

NEAR = 1e-2
"""Largest difference from the base that the run was begun with, in parts of a tensor's largest number: it may have been rounded."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written."""

    kind: str
    """`peft_type`."""
    base: Path
    numbers: int


def write_adapter(checkpoint: Path, path: Path, base: str | None, trained: bool = False) -> Written:
    """Write what a run trained; `base`: folder of its base, None: the one that it was begun with. `trained`: of a run that averaged
    its weights, those that it trained."""
    part = trained_part(checkpoint)
    if part is None:
        raise UserError(f"{checkpoint} holds a whole model and no adapters: write it with stage/format=hf")
    if method_for(part.peft) is None:
        other = "stage/format=hf writes the model with it put in" if part.peft.merges else "only llmfactory can use it"
        raise UserError(f"peft has nothing like peft={stem(type(part.peft))}, by which {checkpoint} was trained: {other}")
    published = base_for(part, base)
    own = dict(part.own(trained))
    outgoing = _outgoing(part, published, own)
    config, tensors = to_folder(outgoing, {name: tensor for name, tensor in own.items() if name not in outgoing.model.added})
    config = {BASE: str(published.path.absolute()), **config}
    _save(path, config, tensors)
    return Written(str(config["peft_type"]), published.path, sum(tensor.numel() for tensor in tensors.values()))


def base_for(part: Trained, given: str | None) -> Published:
    """The base as others can load it. Raises UserError where it is not what the adapters were trained beside."""
    before = part.stands_on()
    if given is None:
        if before is None or not is_published(before) or is_adapter(before) or before.is_file():
            what = "random weights" if before is None else str(before)
            raise UserError(
                f"{part.checkpoint} was trained beside {what}, which is no folder of the Hugging Face format: write the base there "
                "first (stage=export stage.path=<folder>), and name it in stage.format.base"
            )
        return open_published(before)
    published = open_published(Path(given).expanduser())
    theirs = dict(tensors_of(published))
    for name, tensor in tensors_behind(before, part.base.get(TRAINED, False)) if before is not None else ():
        if name in part.tensors:
            continue
        if name not in theirs or theirs[name].shape != tensor.shape or _differ(theirs[name], tensor):
            raise UserError(f"stage.format.base={given} is not what {part.checkpoint} was trained beside: its {name} differs")
    return published


def _differ(one: Tensor, other: Tensor) -> bool:
    return bool((one.double() - other.double()).abs().max() > NEAR * other.double().abs().max())


def _outgoing(part: Trained, published: Published, own: dict[str, Tensor]) -> Outgoing:
    model = part.donor()
    for name, tensor in own.items():
        if name in model.added:
            path, _, attribute = name.rpartition(".")
            model.get_submodule(path)._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
    family = target_for(part.model, published.family.types[0]).family
    return Outgoing(part.peft, part.model, family, model, _reader(published))


def _reader(published: Published) -> Callable[[str], Tensor]:
    """Reads tensors of the base under our names."""
    entries = {name: entry for entry in published.family.entries(published.spec) for name in entry.ours}

    def tensor(name: str) -> Tensor:
        entry = entries[name]
        found = entry.to_ours([read(published, theirs) for theirs in entry.theirs])[entry.ours.index(name)]
        return found.to(torch.promote_types(found.dtype, torch.float32))

    return tensor


def _save(path: Path, config: Config, tensors: dict[str, Tensor]) -> None:
    """Everything or, on an error, nothing."""
    temporary = path.with_name(path.name + ".tmp")
    discard(temporary)
    temporary.mkdir(parents=True)
    try:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary / WEIGHTS, {"format": "pt"})
        publish(temporary, path)
    except BaseException:
        discard(temporary)
        raise
