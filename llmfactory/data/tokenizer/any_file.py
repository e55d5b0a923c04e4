"""A tokenizer from whatever a path is: a folder of ours or a published one, or a file of a kind that its name tells."""

from __future__ import annotations

from pathlib import Path

from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.bytes import ByteTokenizer, as_pairs
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.hf_folder import read_folder
from llmfactory.data.tokenizer.spec import GgufFile, HfFile, SentencepieceFile, WordpieceFile
from llmfactory.data.tokenizer.tokenizer import ABOUT, FOLDER, load

KINDS = {".gguf": GgufFile, ".model": SentencepieceFile, ".txt": WordpieceFile, ".json": HfFile}
"""By the end of the name; options of their own say more of a file."""


def read_any(path: Path) -> HfTokenizer:
    """Bytes come as byte-level pairs without a merge. Raises UserError."""
    if not path.is_dir():
        kind = KINDS.get(path.suffix)
        if kind is None:
            raise UserError(f"{path} is no tokenizer that can be told by its name: {', '.join(KINDS)}, or a folder")
        found = kind(file=str(path)).build(1 << 31).make(())
    elif kept := next((folder for folder in _kept(path) if (folder / ABOUT).is_file()), None):
        found = load(kept)
    else:
        found = read_folder(path)
    if isinstance(found, ByteTokenizer):
        return as_pairs()
    assert isinstance(found, HfTokenizer)
    return found


def _kept(path: Path) -> list[Path]:
    """Where a tokenizer of ours may stand: here, in a checkpoint, in the newest one of a run."""
    newest = sorted(path.glob("checkpoints/step_*[0-9]"), key=lambda folder: int(folder.name.rpartition("_")[2]))
    return [path, path / FOLDER, *(folder / FOLDER for folder in reversed(newest))]
