"""Marks to beat: what general compressors make of the held-out text after they have seen the training text.

`compressed(training + held out) - compressed(training)`, in bits per byte of held-out text, is what a model's bits per byte can be
held against. gzip looks back 32 KiB only, so that its mark is little more than its own figure on the held-out text; xz looks
back over all of the text, which is therefore kept beside the tokens, up to xz's window.
"""

from __future__ import annotations

import json
import lzma
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from llmfactory.core.errors import UserError
from llmfactory.data.prepared import Prepared
from llmfactory.data.shard import Shards
from llmfactory.data.sides import Sides
from llmfactory.data.split import Side

WINDOW = 64 << 20
"""Bytes that `xz -9` looks back."""
TRAIN, HELD_OUT, FOUND = "train_end.txt", "held_out.txt", "marks.json"


def write_texts(shards: Shards, sides: Sides, folder: Path) -> None:
    """Keep what the marks need: the held-out text, and the last 64 MiB of the training text."""
    with (folder / HELD_OUT).open("wb") as file:
        for shard, start in zip(shards.shards, shards.starts.tolist(), strict=False):
            wanted = np.flatnonzero(sides.side[start : start + len(shard)] == Side.held_out).tolist()
            wanted += [document - start for document in sides.cuts if start <= document < start + len(shard)]
            for number, entry in zip(sorted(wanted), shard.some(sorted(wanted)), strict=True):
                file.writelines(text.encode() for part, text in sides.parts(start + number, entry.text) if part == "held_out")
    first, size = len(shards), 0
    for shard, start in reversed(list(zip(shards.shards, shards.starts.tolist(), strict=False))):
        trained = np.flatnonzero(sides.side[start : start + len(shard)] == Side.train)
        behind = np.cumsum(shard.sizes[trained][::-1])
        enough = int(np.searchsorted(behind, WINDOW - size))
        if enough < len(trained):
            first = start + int(trained[len(trained) - 1 - enough])
            break
        first, size = start, size + (int(behind[-1]) if len(behind) else 0)
    with (folder / TRAIN).open("wb") as file:
        for shard, start in zip(shards.shards, shards.starts.tolist(), strict=False):
            for number, entry in enumerate(shard.read(max(0, min(first - start, len(shard)))), max(start, first)):
                file.writelines(text.encode() for part, text in sides.parts(number, entry.text) if part == "train")


def prepared_marks(prepared: Prepared) -> dict[str, float]:
    """The marks of a prepared corpus, measured once and kept in its folder. Empty where nothing is held out, or no plain text."""
    if not prepared.held_out_bytes or prepared.records:
        return {}
    path = prepared.folder / FOUND
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"gzip": float(found["gzip"]), "xz": float(found["xz"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or by a process that was killed meanwhile
    try:
        training = (prepared.folder / TRAIN).read_bytes()
        held_out = (prepared.folder / HELD_OUT).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    marks = compressor_marks(training, held_out)
    with suppress(OSError):  # kept to save time: a cache that cannot be written must not fail a job that is done
        path.write_text(json.dumps(marks) + "\n", encoding="utf-8")
    return marks


def compressor_marks(training: bytes, held_out: bytes) -> dict[str, float]:
    """Bits per byte of the held-out text under `gzip -9` and `xz -9`, both primed with the training text."""
    texts = (training, training + held_out)
    with ThreadPoolExecutor(2) as pool:  # both libraries work outside of the interpreter's lock
        found = {name: [pool.submit(how, text) for text in texts] for name, how in (("xz", _xz), ("gzip", _gzip))}
    sizes = {name: [future.result() for future in futures] for name, futures in found.items()}
    return {name: 8 * (sizes[name][1] - sizes[name][0]) / len(held_out) for name in ("gzip", "xz")}


def _gzip(data: bytes) -> int:
    return len(zlib.compress(data, 9))


def _xz(data: bytes) -> int:
    # Preset 9's window is 64 MiB and its tables take ten times that: a window of the text's size gives the same with less.
    window = min(WINDOW, max(1 << 16, 1 << (len(data) - 1).bit_length()))
    options = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, filters=[options]))
