"""A folder of the library `peft`: `adapter_config.json` and `adapter_model.safetensors`, beside a base that the config names.

Nothing here imports torch, so that `init=<folder>` is understood while composing. The tensors are translated in
`checkpoint/adapter.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfactory.checkpoint.names.folder import ADAPTER, PICKLES, inside, is_adapter, read_json
from llmfactory.checkpoint.names.published import Published, is_published, open_published
from llmfactory.core.errors import UserError
from llmfactory.core.safetensors_file import Stored, read_table

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
BASE = "base_model_name_or_path"
PREFIX = "base_model.model."
"""Beginning of the names of tensors that stand beside a module of the base."""
REFUSED: Mapping[str, Any] = {
    "bias": "none",
    "lora_bias": False,
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "use_qalora": False,
    "use_bdlora": None,
    "kasa_config": None,
    "velora_config": None,
    "monteclora_config": None,
}
"""Keys that change what an adapter computes in a way that has no counterpart here, and the value at which they do nothing."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A folder that was understood."""

    path: Path
    config: Mapping[str, Any]
    base: Published
    tensors: Mapping[str, Stored]

    @property
    def kind(self) -> str:
        return str(self.config["peft_type"])


def open_adapter(path: Path, base: Path | None = None) -> AdapterFolder:
    """`base`: where the base lies; None: where the config says.

    Raises UserError: a method or an option that has no counterpart here, a base that is not there, a damaged file.
    """
    config = read_json(path, CONFIG)
    if not (path / WEIGHTS).is_file():
        pickled = next((file for file in sorted(path.iterdir()) if file.suffix in PICKLES), None)
        told = f"it holds {pickled.name}, a pickle, which could run code" if pickled is not None else "it is not there"
        raise UserError(f"{path / WEIGHTS} cannot be read: {told}; save the adapter by peft's save_pretrained")
    if not isinstance(config.get("peft_type"), str):
        raise UserError(f"{path / CONFIG} is damaged: it names no peft_type")
    for key, nothing in REFUSED.items():
        if config.get(key, nothing) not in (nothing, None, {}):
            raise UserError(f"{path / CONFIG}: {key}={config[key]!r} has no counterpart here")
    return AdapterFolder(path, config, open_published(find_base(path, config, base)), read_table(inside(path, WEIGHTS)))


def find_base(path: Path, config: Mapping[str, Any], base: Path | None) -> Path:
    """Where the base of an adapter lies: as the config has it, from here or from beside the adapter."""
    named = config.get(BASE)
    places = [base] if base is not None else []
    if base is None and isinstance(named, str) and named:
        places = [Path(named).expanduser(), path / named, path.parent / named]
    for place in places:
        if is_published(place) and not is_adapter(place):
            return place
    told = (
        f"{base} is no published model" if base is not None else f"{path / CONFIG} says {BASE}={named!r}, which is no folder here"
    )
    raise UserError(f"{path} needs the model that it was trained beside: {told}; write the path of its folder there")
