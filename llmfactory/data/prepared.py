"""A prepared corpus on disk: token files, tokenizer and a manifest, in a folder named after the hash of all they depend on.

The folder appears whole, by a rename, or not at all. The manifest holds size and checksum of every file, so that a truncated or
altered one is noticed before anything is read from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmfactory.data.tokenizer.tokenizer import FOLDER, Tokenizer, load
from llmfactory.data.tokens import TokenFile

FORMAT = 1
"""Version of what stands in the folder; part of its hash."""
MANIFEST = "manifest.json"
BLOCK = 1 << 20
BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Prepared:
    folder: Path
    tokenizer: Tokenizer
    train: TokenFile
    held_out: TokenFile
    held_out_bytes: int
    """UTF-8 bytes of the held-out text: what bits per byte are counted against."""
    counts: dict[str, Any]
    """Documents, bytes and tokens of both parts, and what was left out, by reason, with samples."""
    fresh: bool
    """True: made now; False: found in the cache."""

    @property
    def name(self) -> str:
        """Hash of everything that it depends on."""
        return self.folder.name

    def save(self, folder: Path) -> None:
        """What a checkpoint keeps of it: the tokenizer."""
        self.tokenizer.save(folder)

    def held_out_text(self, index: int) -> str:
        """Text of a held-out document."""
        return self.tokenizer.decode(self.held_out.document(index))


class Damaged(Exception):
    """A file of a prepared folder is not what the manifest says."""


def read(folder: Path, fresh: bool) -> Prepared:
    """The prepared corpus of a folder. Raises `Damaged`, naming the file."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        dtype, counts, end_id = np.dtype(manifest["dtype"]), manifest["counts"], manifest["end_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / MANIFEST}: {error}") from error
    for name, expected in files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                raise Damaged(f"{path} has {size} bytes instead of {expected['bytes']}")
            if checksum(path) != expected["checksum"]:
                raise Damaged(f"{path}: wrong checksum")
        except OSError as error:
            raise Damaged(f"{path}: {error.strerror or error}") from error
    parts = {part: TokenFile(folder / f"{part}.bin", folder / f"{part}.offsets", dtype, end_id) for part in ("train", "held_out")}
    return Prepared(
        folder=folder,
        tokenizer=load(folder / FOLDER),
        train=parts["train"],
        held_out=parts["held_out"],
        held_out_bytes=counts["held_out"]["bytes"],
        counts=counts,
        fresh=fresh,
    )


def checksum(path: Path) -> str:
    """Of the whole file up to 64 MiB, of 64 blocks of 1 MiB spread evenly over a larger one: it must cost no second read."""
    size = path.stat().st_size
    total = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in _blocks(size):
            file.seek(start)
            total.update(file.read(BLOCK))
    return total.hexdigest()


def _blocks(size: int) -> Sequence[int]:
    if size <= BLOCK * BLOCKS:
        return range(0, size, BLOCK)
    return [(size - BLOCK) * i // (BLOCKS - 1) for i in range(BLOCKS)]


def write_manifest(folder: Path, **content: Any) -> None:
    """Describe all files that stand in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    content["files"] = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "checksum": checksum(path)} for path in paths
    }
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
