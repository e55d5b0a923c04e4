"""What a run stands on that trains a small part of its model only: its checkpoints hold that part, not the rest.

`state.json` says under `base` where the rest comes from: `init` as it was given, `path` of the checkpoint that it meant, and the
fingerprint of what that held; without `init`, the seed of random weights. A base that is gone, or holds something else by now, is
refused: adapters beside other weights are noise.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmfactory.checkpoint import io
from llmfactory.checkpoint.adapter import tensors_in
from llmfactory.checkpoint.names.adapter import WEIGHTS, AdapterFolder, open_adapter
from llmfactory.checkpoint.names.adapter_methods import spec_of
from llmfactory.checkpoint.names.folder import ADAPTER, is_adapter
from llmfactory.checkpoint.names.published import is_published, open_published
from llmfactory.checkpoint.published import tensors_of
from llmfactory.checkpoint.tensors import PREFIX, describe
from llmfactory.config.saved import saved_spec
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import name_seed
from llmfactory.core.spec import stem
from llmfactory.model.declarations import declarations
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import ModelSpec
from llmfactory.optim.average.average import TRAINED
from llmfactory.peft.merge import Changes
from llmfactory.peft.spec import AdapterSpec, PeftSpec

BASE = "base"
"""Key of state.json."""
BLOCK, BLOCKS = 1 << 20, 256
"""Of a published file, up to so many blocks of so many bytes, spread evenly, are looked at: of most files, all."""

Record = dict[str, Any]


def base_of(init: str | None, checkpoint: Path | None, seed: int, trained: bool = False) -> Record:
    """What state.json says of the base; `trained`: of a run that averaged its weights, those that it trained."""
    if checkpoint is None:
        return {"init": None, "seed": seed}
    found = {"init": init, "path": str(checkpoint.absolute()), "fingerprint": contents(checkpoint)}
    return {**found, TRAINED: True} if trained else found


def contents(checkpoint: Path) -> str:
    """A fingerprint of all weights that a checkpoint or a published model stands for."""
    if is_adapter(checkpoint):
        told: Any = [_looked_at(checkpoint / name) for name in (ADAPTER, WEIGHTS)] + [
            contents(open_adapter(checkpoint).base.path)
        ]
    elif is_published(checkpoint):
        paths = sorted({stored.path for stored in open_published(checkpoint).tensors.values()})
        told = [_looked_at(path) for path in paths]
    else:
        state = io.read_state(checkpoint)
        files = {name: entry for name, entry in state["files"].items() if name.endswith(".safetensors")}
        told = [files, state.get(BASE, {}).get("fingerprint"), sorted(state["tensors"])]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _looked_at(path: Path) -> list[int]:
    size = path.stat().st_size
    blocks = -(-size // BLOCK)
    crc = 0
    with path.open("rb") as file:
        for number in range(min(blocks, BLOCKS)):
            file.seek(number * max(1, blocks // BLOCKS) * BLOCK)
            crc = zlib.crc32(file.read(BLOCK), crc)
    return [size, crc]


def find_base(checkpoint: Path, record: Record, init: str | None = None) -> Path | None:
    """Where the base of a checkpoint lies: there still, or at `init` by now; None: it is random. Raises UserError where neither
    holds what the run was begun with."""
    if record["init"] is None:
        return None
    places = dict.fromkeys(Path(place).expanduser() for place in (record["path"], record["init"], init) if place is not None)
    found: list[str] = []
    for place in places:
        try:
            there = place if is_published(place) else io.find(place)
            if contents(there) == record["fingerprint"]:
                return there
            found.append(f"{place} holds other weights now")
        except (UserError, OSError):
            found.append(f"there is no model at {place}")
    reason = "; ".join(found)
    raise UserError(
        f"{checkpoint} holds what was trained beside the weights of {record['init']}, which it needs: {reason}. "
        f"Put them back where they were"
    )


@dataclass(frozen=True, slots=True)
class Trained:
    """A checkpoint of a part of a model."""

    checkpoint: Path
    peft: AdapterSpec
    base: Record
    tensors: dict[str, dict[str, Any]]
    """Shape and format of what it holds, the optimizer's aside."""

    @property
    def model(self) -> ModelSpec:
        found = saved_spec(self.checkpoint, ModelSpec, "model")
        assert found is not None
        return found

    def stands_on(self) -> Path | None:
        """The checkpoint of the rest; None: random weights."""
        return find_base(self.checkpoint, self.base)

    def own(self, trained: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Our names and tensors of what it holds."""
        return io.whole_tensors(self.checkpoint, trained)

    def donor(self) -> Skeleton:
        """The run's model with its adapters, without memory."""
        with torch.device("meta"):
            model = self.model.build()
            self.peft.apply(model)
        return model


@dataclass(frozen=True, slots=True)
class Brought(Trained):
    """A folder of the library `peft`."""

    folder: AdapterFolder

    @property
    def model(self) -> ModelSpec:
        return self.folder.base.spec

    def stands_on(self) -> Path | None:
        return self.folder.base.path

    def own(self, trained: bool = False) -> Iterator[tuple[str, Tensor]]:
        insist_on_average(self.checkpoint, trained)
        return tensors_in(self.folder)


def trained_part(checkpoint: Path) -> Trained | None:
    """What a checkpoint holds, if it is not the whole model."""
    if is_adapter(checkpoint):
        folder = open_adapter(checkpoint)
        base = {"init": str(folder.base.path)}
        return Brought(checkpoint, spec_of(folder), base, describe(dict(tensors_in(folder))), folder)
    if is_published(checkpoint):
        return None
    state = io.read_state(checkpoint)
    if state.get(BASE) is None:
        return None
    peft = saved_spec(checkpoint, PeftSpec, "peft")
    if not isinstance(peft, AdapterSpec):  # all of the model itself, and a frozen companion beside it
        return None
    tensors = {name: entry for name, entry in state["tensors"].items() if not name.startswith(PREFIX)}
    return Trained(checkpoint, peft, state[BASE], tensors)


def insist_on_average(checkpoint: Path, trained: bool) -> None:
    """Published weights are what they are. Raises UserError where others are asked for."""
    if trained:
        raise UserError(f"{checkpoint} is no run of ours that averaged its weights: use init_trained=false")


def tensors_behind(checkpoint: Path, trained: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Our names and whole tensors of the model that a checkpoint stands for, one after the other: of a run that trained a part,
    those of its base with what it trained put in, and then, if the method's work cannot be put into weights, its adapters'.
    `trained`: of a run that averaged its weights, those that it trained."""
    part = trained_part(checkpoint)
    if part is None and is_published(checkpoint):
        insist_on_average(checkpoint, trained)
        yield from tensors_of(open_published(checkpoint))
        return
    if part is None:
        yield from io.whole_tensors(checkpoint, trained)
        return
    own = dict(part.own(trained))
    donor = part.donor()
    changes = Changes(donor, own if part.peft.merges else {})
    base = part.stands_on()
    for name, tensor in (
        tensors_behind(base, part.base.get(TRAINED, False)) if base is not None else _drawn(part.model, part.base["seed"])
    ):
        yield name, own.pop(name) if name in own else changes.made(name, tensor)
    yield from ((name, tensor) for name, tensor in own.items() if not (part.peft.merges and name in donor.added))


def _drawn(spec: ModelSpec, seed: int) -> Iterator[tuple[str, Tensor]]:
    """A model's first weights, as `model/initialize.py` draws them."""
    with torch.device("meta"):
        model = spec.build()
    declared = declarations(model)
    for name, parameter in model.named_parameters():
        full = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        declared[name].start.fill(full, torch.Generator().manual_seed(name_seed(seed, name)))
        yield name, full


def insist_on_adapters(part: Trained, model: Skeleton) -> None:
    """What cannot be put into weights must stand in the model that is to be filled."""
    there, added = dict(model.named_parameters()), part.donor().added
    if missing := [name for name in part.tensors if name in added and name not in there]:
        method = stem(type(part.peft))
        raise UserError(
            f"{part.checkpoint} was trained with peft={method}, which cannot be put into the model's own weights, and this job's "
            f"model has no place for it ({missing[0]}): use peft={method} with the run's values"
        )
