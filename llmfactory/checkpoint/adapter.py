"""Adapters in the format of the library `peft`: their tensors as ours, and back.

What was trained of the model itself beside the adapters (`peft.train`) stands in such a folder as whole modules, under their names in
the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from llmfactory.checkpoint.names.adapter import PREFIX, AdapterFolder
from llmfactory.checkpoint.names.adapter_method import Config, Incoming, Outgoing
from llmfactory.checkpoint.names.adapter_methods import method_for, method_of, saved_entries, saved_names, spec_of
from llmfactory.checkpoint.published import stored_tensor
from llmfactory.core.errors import UserError
from llmfactory.model.head.spec import Lm
from llmfactory.model.spec import ModelSpec

SAVED = "modules_to_save"


# ---- in


def tensors_in(folder: AdapterFolder) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors of all that a folder holds. Raises UserError where it holds more than was understood."""
    read_names: set[str] = set()
    with torch.device("meta"):
        model = folder.base.spec.build()

    def read(name: str) -> Tensor:
        read_names.add(name)
        return stored_tensor(folder.tensors[name])

    yield from method_of(folder).ours(Incoming(folder, read, model), spec_of(folder))
    saved = saved_names(folder)
    for entry in saved_entries(folder):
        yield from zip(entry.ours, entry.to_ours([read(saved[name]) for name in entry.theirs]), strict=True)
    if left := sorted(set(folder.tensors) - read_names):
        raise UserError(f"{folder.path} holds {', '.join(left[:3])}, which has no counterpart here")


# ---- out


def to_folder(outgoing: Outgoing, own: Mapping[str, Tensor]) -> tuple[Config, dict[str, Tensor]]:
    """adapter_config.json, but for where the base is, and the tensors under their names; `own`: what was trained of the model itself."""
    method = method_for(outgoing.peft)
    assert method is not None
    config, tensors = method.theirs(outgoing)
    modules: dict[str, None] = {}
    table = {name: entry for entry in outgoing.family.entries(outgoing.spec) for name in entry.theirs}
    for entry in {id(entry): entry for entry in table.values()}.values():
        if set(entry.ours) & set(own):
            modules |= dict.fromkeys(name.rpartition(".")[0] for name in entry.theirs)
    for name, entry in table.items():  # whole modules: a bias of a matrix that was trained, too
        if name.rpartition(".")[0] in modules:
            tensors[f"{PREFIX}{name}"] = dict(
                zip(entry.theirs, entry.to_theirs([_value(n, own, outgoing.base) for n in entry.ours]), strict=True)
            )[name]
    if modules:
        config[SAVED] = sorted(modules)  # `peft` matches the ends of names, wherever these begin
    return {"task_type": task_of(outgoing.spec), **config, "inference_mode": True}, {
        name: tensor.contiguous() for name, tensor in tensors.items()
    }


def task_of(spec: ModelSpec) -> str | None:
    """Which of its wrappers `peft` puts around the base. Those of classifiers insist on saving heads under names of their own."""
    if spec.graph == "encoder_decoder":
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if spec.graph == "decoder" and isinstance(getattr(spec, "head", None), Lm) else None


def _value(name: str, own: Mapping[str, Tensor], base: Callable[[str], Tensor]) -> Tensor:
    return own[name] if name in own else base(name)
