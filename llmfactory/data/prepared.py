"""A prepared corpus on disk: token files by source, tokenizer and a manifest, in a folder named after the hash of all they depend on.

The folder appears whole, by a rename, or not at all. The manifest holds size and checksum of every file, so that a truncated or
altered one is noticed before anything is read from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmfactory.data.checksum import Damaged, describe, verify
from llmfactory.data.tokenizer.tokenizer import FOLDER, Tokenizer, load
from llmfactory.data.tokens import TokenFile

FORMAT = 3
"""Version of what stands in the folder; part of its hash."""
MANIFEST = "manifest.json"
SOURCES = "sources"


@dataclass(frozen=True, slots=True)
class SourceTokens:
    """Of one source."""

    train: TokenFile
    held_out: TokenFile
    counts: Mapping[str, Any]
    """Of `train` and `held_out`: documents, bytes of text, tokens, targets."""

    def part(self, name: str) -> TokenFile:
        return self.train if name == "train" else self.held_out


@dataclass(frozen=True, slots=True)
class Prepared:
    folder: Path
    tokenizer: Tokenizer
    sources: dict[str, SourceTokens]
    """By name."""
    counts: dict[str, Any]
    """Of `train` and `held_out` over all sources: documents, bytes of text, tokens, targets; `steps` and `lengths`: what became of
    every record (data/tally.py); `sources`: what was read of each; `copies`: clusters that comparisons found."""
    fresh: bool
    """True: made now; False: found in the cache."""
    records: bool
    """Documents are records, so that tokens stand for more or less than the documents' text."""

    @property
    def name(self) -> str:
        """Hash of everything that it depends on."""
        return self.folder.name

    @property
    def only(self) -> SourceTokens:
        """That of a corpus of one source."""
        (found,) = self.sources.values()
        return found

    @property
    def train(self) -> TokenFile:
        return self.only.train

    @property
    def held_out(self) -> TokenFile:
        return self.only.held_out

    @property
    def held_out_bytes(self) -> int:
        """UTF-8 bytes of the held-out text: what bits per byte are counted against."""
        return int(self.counts["held_out"]["bytes"])

    def save(self, folder: Path) -> None:
        """What a checkpoint keeps of it: the tokenizer."""
        self.tokenizer.save(folder)

    def held_out_text(self, index: int) -> str:
        """Text of a held-out document, numbered through all sources."""
        for tokens in (source.held_out for source in self.sources.values()):
            if index < tokens.documents:
                return self.tokenizer.decode(tokens.document(index))
            index -= tokens.documents
        raise IndexError(index)


def read(folder: Path, fresh: bool) -> Prepared:
    """The prepared corpus of a folder. Raises `Damaged`, naming the file."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        verify(folder, manifest["files"])
        dtype, counts, end_id = np.dtype(manifest["dtype"]), manifest["counts"], manifest["end_id"]
        named, records = list(counts[SOURCES]), bool(manifest["records"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder / MANIFEST}: {error}") from error

    def tokens(name: str, part: str) -> TokenFile:
        return TokenFile.beside(folder / SOURCES / name / f"{part}.bin", dtype, end_id, conversations=records)

    sources = {name: SourceTokens(tokens(name, "train"), tokens(name, "held_out"), counts[SOURCES][name]) for name in named}
    return Prepared(folder, load(folder / FOLDER), sources, counts, fresh, records)


def write_manifest(folder: Path, **content: Any) -> None:
    """Describe all files that stand in the folder."""
    content["files"] = describe(folder)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
