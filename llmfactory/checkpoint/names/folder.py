"""A folder of the Hugging Face format: `config.json`, `model.safetensors` or shards with an index.

Pickled weights are refused by name and never opened. A shard stands in the folder itself; links may lead out of it only into
the `blobs` of the hub's own cache, where a snapshot's files lie.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.safetensors_file import Stored, read_table

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
"""Of a folder of the library `peft`, which holds adapters for a model that lies elsewhere."""
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder of the library `peft`."""
    return path.is_dir() and (path / ADAPTER).is_file() and not (path / CONFIG).is_file()


def refuse_pickle(path: Path) -> None:
    """A file of the name of pickled weights, or a folder that has no others."""
    found = [path] if path.suffix in PICKLES else []
    if path.is_dir() and not any((path / name).exists() for name in (WHOLE, INDEX)):
        found = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if found:
        raise UserError(
            f"{found[0]} holds pickled weights, which can run code when they are read, so it is not opened; save the model as "
            "safetensors where it comes from (transformers: model.save_pretrained(folder, safe_serialization=True))"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json."""
    return read_json(folder, CONFIG)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The mapping in a JSON file of the folder."""
    content = _parsed(folder, name)
    if not isinstance(content, dict):
        raise UserError(f"{folder / name} is damaged: it holds no mapping")
    return content


def read_list(folder: Path, name: str) -> list[Any]:
    """The list in a JSON file of the folder."""
    content = _parsed(folder, name)
    if not isinstance(content, list):
        raise UserError(f"{folder / name} is damaged: it holds no list")
    return content


def _parsed(folder: Path, name: str) -> Any:
    path = inside(folder, name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def inside(folder: Path, name: str) -> Path:
    """A file of the folder. Raises UserError where its name or a link leads out."""
    home = folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # the hub's cache: models--x--y/snapshots/<revision>/file -> ../../blobs/<hash>
        allowed.append(home.parent.parent / "blobs")
    place = (folder / name).resolve()
    if not isinstance(name, str) or Path(name).is_absolute() or not any(place.is_relative_to(root) for root in allowed):
        raise UserError(f"{folder}: {name} leads out of the folder (to {place}), so it is not read")
    return folder / name


def read_tables(folder: Path) -> dict[str, Stored]:
    """All tensors of the folder by name."""
    if (folder / WHOLE).exists() and not (folder / INDEX).exists():
        return read_table(inside(folder, WHOLE))
    if not (folder / INDEX).exists():
        raise UserError(f"{folder} holds no weights: neither {WHOLE} nor {INDEX}")
    index = read_json(folder, INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise UserError(f"{folder / INDEX} is damaged: it has no weight_map from tensors to files")
    tables: dict[str, Stored] = {}
    for shard in sorted(set(index.values())):
        if Path(shard).suffix in PICKLES:
            refuse_pickle(Path(folder, shard))
        table = read_table(inside(folder, shard))
        wrong = sorted({name for name, file in index.items() if file == shard} ^ set(table))
        if wrong:
            raise UserError(f"{folder / INDEX} and {shard} disagree about {', '.join(wrong[:5])}")
        tables |= table
    return tables
