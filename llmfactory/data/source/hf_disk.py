"""Folders that `save_to_disk` of Hugging Face datasets has made: Arrow streams, and JSON files that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.data.source.files import LocalFiles
from llmfactory.data.source.spec import Files, Format, HfDisk

SPLITS = "dataset_dict.json"
STATE = "state.json"


def is_saved(folder: Path) -> bool:
    return (folder / SPLITS).is_file() or (folder / STATE).is_file()


def saved(spec: HfDisk) -> LocalFiles:
    folder = Path(spec.path).expanduser()
    if not is_saved(folder):
        raise UserError(
            f"data.source.path={spec.path} is no folder that save_to_disk has made: it has neither {SPLITS} nor {STATE}. "
            "For other files: data/source=files 'data.source.files=[...]'"
        )
    parts = _splits(folder, spec.split) if (folder / SPLITS).is_file() else [folder]
    files = [str(part / str(file["filename"])) for part in parts for file in _json(part / STATE, "_data_files")]
    if not files:
        raise UserError(f"{folder / STATE} names no files")
    return LocalFiles(Files(files=files, format=Format.arrow, field=spec.field, bad_share=spec.bad_share))


def _splits(folder: Path, split: str | None) -> list[Path]:
    names = _json(folder / SPLITS, "splits")
    if split is not None and split not in names:
        raise UserError(f"{folder} has no split {split!r}, it has {', '.join(names)}: data.source.split={names[0]}")
    return [folder / name for name in names if split in (None, name)]


def _json(path: Path, key: str) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    if not isinstance(found, list) or not found:
        raise UserError(f"{path} is damaged: {key} is {found!r}")
    return found
