"""Files of a checkpoint folder: written so that a crash or a full disk leaves either the whole folder or nothing.

Everything goes to `<name>.tmp` first, is flushed to the disk (files, then folder), and only then gets its name. A folder
without `.tmp` is therefore complete; its `state.json`, the last file written, lists every other file with size and
checksum, so that damage done later is noticed and named.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError

STATE = "state.json"
TEMPORARY = ".tmp"


def fsync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, final: Path) -> None:
    """Flush everything below `temporary` and give it its final name."""
    for folder, _, names in os.walk(temporary, topdown=False):
        for name in names:
            fsync(Path(folder, name))
        fsync(Path(folder))
    os.rename(temporary, final)
    fsync(final.parent)


def discard(path: Path) -> None:
    """Delete a folder; killed half-way, it leaves no folder that looks complete."""
    temporary = path if path.name.endswith(TEMPORARY) else path.with_name(path.name + TEMPORARY)
    if path != temporary:
        shutil.rmtree(temporary, ignore_errors=True)
        os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def names(folder: Path) -> list[str]:
    """All files below a folder except `state.json`, relative to it, sorted."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != STATE)


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and CRC-32 of a file."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": f"{crc:08x}"}


def write_json(path: Path, value: Any) -> None:
    """Numbers keep all their digits; anything that is not plain data is a `TypeError`."""
    path.write_text(json.dumps(value, indent=1, allow_nan=True), encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file; says which file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def check_files(folder: Path, listed: dict[str, dict[str, Any]], only: Iterable[str] | None = None) -> None:
    """Insist that the listed files are there and unchanged, and that no other tensor file is; names the first that is not."""
    for name in sorted(listed if only is None else only):
        path, expected = folder / name, listed[name]
        if not path.is_file():
            raise UserError(f"{path} is missing, so this checkpoint cannot be read")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(f"{path} is damaged: {size} bytes instead of {expected['bytes']}, so this checkpoint cannot be read")
        if fingerprint(path) != expected:
            raise UserError(f"{path} is damaged: its checksum differs, so this checkpoint cannot be read")
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in listed:
            raise UserError(f"{path} does not belong to this checkpoint: {STATE} does not list it")


def require_space(folder: Path, needed: int, what: str) -> None:
    """Insist that `needed` bytes are free where `folder` stands."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {needed} bytes ({needed / 2**30:.2f} GiB), but only {free} bytes ({free / 2**30:.2f} GiB) are free "
            f"in {folder}; free some space, or use another output_dir"
        )
