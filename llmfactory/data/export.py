"""Documents as files that other programs read: gzipped JSON lines, a file a shard."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from llmfactory.core.errors import UserError
from llmfactory.data.documents import Documents


def export(documents: Documents, folder: Path) -> int:
    """Write every document as `{"text": ..., "name": ..., "source": ...}`; how many there are.

    Raises UserError where the folder is there already, or cannot be written.
    """
    work = folder.with_name(f"{folder.name}.tmp")
    if folder.exists():
        raise UserError(f"{folder} is there already: name another folder, stage.export=...")
    try:
        work.mkdir(parents=True)
        for number, shard in enumerate(documents.shards.shards):
            path = work / f"{shard.source}-{number:05d}.jsonl.gz"
            # Without a date in it, so that the same documents give the same file.
            with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
                for entry in shard.read():
                    record = {"text": entry.text, "name": entry.name, "source": shard.source}
                    file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        work.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    return len(documents.shards)
