"""From a corpus spec to token files: read, split, train the tokenizer, encode; once for each content, kept in the cache.

The result is a function of the documents and of the spec alone: not of the number of threads, of the process, or of who else
prepares the same at the same time. A process that is killed leaves a temporary folder that nobody reads and the next one removes.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special
from llmfactory.data.encode import encode
from llmfactory.data.lock import locked
from llmfactory.data.marks import write_texts
from llmfactory.data.pack.spec import Concat
from llmfactory.data.prepared import FORMAT, Damaged, Prepared, read, write_manifest
from llmfactory.data.source.document import Drops, Source
from llmfactory.data.spec import Corpus
from llmfactory.data.split import split
from llmfactory.data.spool import Spool
from llmfactory.data.tokenizer.tokenizer import FOLDER, TokenizerSource
from llmfactory.data.tokens import dtype_for

Progress = Callable[[str, int, int], None]
"""Called as progress(what is done, bytes or documents done, of how many)."""


def prepare(spec: Corpus, vocab_size: int, progress: Progress | None = None, *, specials: Sequence[Special] = ()) -> Prepared:
    """The corpus, from the cache or made now.

    `vocab_size` is the model's: no id reaches it. `specials`: tokens that the objective needs besides those of the text; a
    tokenizer that is trained leaves the highest ids to them.
    """
    source, tokenizer = spec.source.build(), spec.tokenizer.build(vocab_size, specials)
    folder = cache_folder(spec) / content_hash(spec, source, tokenizer)
    prepared = _cached(folder) or _make(spec, source, tokenizer, folder, progress or _silent)
    if isinstance(spec.pack, Concat) and prepared.train.targets < spec.seq_len:
        raise UserError(
            f"the training part of the corpus has {prepared.train.targets} tokens, less than one row of data.seq_len={spec.seq_len}. "
            f"Try data.seq_len={max(2, prepared.train.targets // 4)}, or more text"
        )
    return prepared


def cache_folder(spec: Corpus) -> Path:
    if spec.cache is not None:
        return Path(spec.cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmfactory" / "prepared"


def content_hash(spec: Corpus, source: Source, tokenizer: TokenizerSource) -> str:
    """Of everything that the files depend on. How rows are cut and how many threads work is not among it."""
    parts = [FORMAT, type(spec.source).__name__, source.fingerprint(), tokenizer.fingerprint(), spec.held_out]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _cached(folder: Path) -> Prepared | None:
    """What the cache has; a damaged folder counts as nothing and is made again."""
    if not folder.exists():
        return None
    try:
        return read(folder, fresh=False)
    except Damaged:
        return None


def _make(spec: Corpus, source: Source, tokenizer: TokenizerSource, folder: Path, progress: Progress) -> Prepared:
    with _disk(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if found := _cached(folder):  # another process was faster
                return found
            for left in folder.parent.glob(f"{folder.name}.tmp-*"):  # of processes that were killed: we hold the lock
                shutil.rmtree(left, ignore_errors=True)
            work = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
            try:
                work.mkdir()
                _write(spec, source, tokenizer, work, progress)
                if folder.exists():
                    shutil.rmtree(folder)  # damaged, or it would have been taken
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return read(folder, fresh=True)


def _write(spec: Corpus, source: Source, tokenizer_source: TokenizerSource, work: Path, progress: Progress) -> None:
    drops = Drops()
    spool = Spool(work / "spool")
    try:
        expected, done = source.size(), 0
        for document in source.documents(drops):
            spool.add(document)
            done += len(document.text)
            progress("reading", min(done, expected), expected)
        if not len(spool):
            raise UserError(f"the corpus is empty: {describe(spec)} holds no text" + _reasons(drops))
        parts = split(source, spool, spec.held_out, drops)
        progress("training the tokenizer", 0, 1)
        tokenizer = tokenizer_source.make(spool.texts(_sample(spool, parts.train, tokenizer_source.sample_bytes)))
        progress("training the tokenizer", 1, 1)
        tokenizer.save(work / FOLDER)
        counts: dict[str, object] = {}
        total = sum(map(spool.size, parts.train)) + sum(map(spool.size, parts.held_out))
        for name, indices in (("train", parts.train), ("held_out", parts.held_out)):
            before = 0 if name == "train" else sum(map(spool.size, parts.train))
            size = sum(map(spool.size, indices))
            tokens = encode(
                tokenizer,
                spool,
                indices,
                work / f"{name}.bin",
                work / f"{name}.offsets",
                workers=spec.workers or os.cpu_count() or 1,
                progress=lambda done, before=before: progress("tokenizing", before + done, total),  # type: ignore[misc]
            )
            counts[name] = {"documents": len(indices), "bytes": size, "tokens": tokens}
        counts["dropped"] = drops.plain()
        write_texts(spool, parts, work)
    finally:
        spool.close()
    for path in spool.paths:
        path.unlink()
    write_manifest(
        work,
        format=FORMAT,
        corpus=_plain(spec),
        dtype=dtype_for(tokenizer.vocab_size).str,
        end_id=tokenizer.end_id,
        vocab_size=tokenizer.vocab_size,
        counts=counts,
    )


def _sample(spool: Spool, indices: list[int], size: int) -> Iterator[int]:
    """Documents of about `size` bytes together, spread evenly over the corpus; all of them where they are no more."""
    total = sum(map(spool.size, indices))
    taken = seen = 0
    for index in indices:
        seen += spool.size(index)
        if taken * total < seen * size:
            taken += spool.size(index)
            yield index


def describe(spec: Corpus) -> str:
    files = getattr(spec.source, "files", None)
    return f"data.source.files={files}" if files else f"data.source ({type(spec.source).__name__})"


def _reasons(drops: Drops) -> str:
    plain = drops.plain()
    return "".join(f"; {it['documents']} × {reason}, for instance {it['samples'][0]}" for reason, it in plain.items())


def _plain(spec: Corpus) -> dict[str, object]:
    return {
        "source": type(spec.source).__name__,
        "tokenizer": type(spec.tokenizer).__name__,
        "held_out": spec.held_out,
        **{f"source.{key}": value for key, value in dataclasses.asdict(spec.source).items()},
        **{f"tokenizer.{key}": str(value) for key, value in dataclasses.asdict(spec.tokenizer).items()},
    }


def _silent(label: str, done: int, total: int) -> None:
    pass


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Errors of the file system while the cache is written, in words."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else error.strerror or str(error)
        raise UserError(
            f"cannot write prepared data to {folder.parent}: {why}. Nothing half-written is left; name another folder: data.cache=..."
        ) from error
