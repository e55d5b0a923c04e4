"""From a data spec to token files: read and clean, split, train the tokenizer, encode; once for each content, kept in the cache.

The result is a function of the documents and of the spec alone: not of the number of processes, or of who else prepares the same
at the same time. Finished tasks of a process that was killed are kept, and the next one goes on with them.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.core.special import Special
from llmfactory.data.checksum import Damaged
from llmfactory.data.clean.models import Models, NoModels
from llmfactory.data.documents import Documents, Plan, clear, make_documents, publish
from llmfactory.data.encode import COUNTED, PARTS, Encoding, join
from llmfactory.data.learning import Learning
from llmfactory.data.lock import shared
from llmfactory.data.marks import write_texts
from llmfactory.data.pack.spec import Concat
from llmfactory.data.prepared import FORMAT, SOURCES, Prepared, read, write_manifest
from llmfactory.data.shard import read_about
from llmfactory.data.sides import Deciding, Looking, Sides, SourceTraits, Splitting, account
from llmfactory.data.source.digest import default_folder
from llmfactory.data.spec import DocumentsSpec
from llmfactory.data.tally import Tally
from llmfactory.data.tasks import Interrupted, Progress, Publication, Workers, run
from llmfactory.data.tokenizer.tokenizer import FOLDER, TokenizerSource
from llmfactory.data.tokens import dtype_for


def prepare(
    spec: DocumentsSpec,
    vocab_size: int,
    progress: Progress | None = None,
    *,
    specials: Sequence[Special] = (),
    models: Models | None = None,
) -> Prepared:
    """The corpus, from the cache or made now. Several processes may call it at once, and share the work.

    `vocab_size` is the model's: no id reaches it. `specials`: tokens that the objective needs besides those of the text; a
    tokenizer that is trained leaves the highest ids to them. `models`: opens trained models for the steps that ask one.
    """
    plan = Plan.of(spec.named(), spec.clean, spec.form, models or NoModels())
    tokenizer = spec.tokenizer.build(vocab_size, specials)
    cache, report = cache_folder(spec), progress or _silent
    about_documents = plan.fingerprint()
    folder = cache / content_hash(spec, about_documents, tokenizer, vocab_size)
    kept = cache / f"documents-{about_documents}"
    lock = kept.with_name(f"{kept.name}.lock")
    workers = Workers(spec.workers or os.cpu_count() or 1)
    fresh = done = False

    def opened() -> Prepared | None:
        try:
            return read(folder, fresh) if folder.is_dir() else None
        except Damaged:
            return None

    def make(work: Path) -> None:
        nonlocal fresh
        fresh = True
        with shared(lock):  # nobody takes the documents away before we are done with them
            documents = make_documents(plan, kept, workers, report)
            _tokens(spec, vocab_size, specials, plan, documents, folder, work, workers, report)

    try:
        with _disk(folder):
            prepared: Prepared = publish(folder, opened, make)
            done = True
    except Interrupted:
        raise
    except UserError:  # something is wrong with the data: mended, they will have another name
        done = True
        raise
    finally:
        workers.close()
        if fresh and done:
            clear(lock, kept.with_name(f"{kept.name}.work"))
            if not spec.clean:  # they are nothing but a copy of what was read
                clear(lock, kept)
    if isinstance(spec.pack, Concat):
        _insist_on_a_row(spec, prepared)
    return prepared


def _insist_on_a_row(spec: DocumentsSpec, prepared: Prepared) -> None:
    for name, source in prepared.sources.items():
        if source.train.inputs < spec.seq_len:
            of = "" if len(prepared.sources) == 1 else f" of {name}"
            raise UserError(
                f"the training part{of} has {source.train.inputs} tokens, less than one row of data.seq_len={spec.seq_len}. "
                f"Try data.seq_len={max(2, source.train.inputs // 4)}, or more text"
            )


def cache_folder(spec: DocumentsSpec) -> Path:
    if spec.cache is not None:
        return Path(spec.cache).expanduser()
    return default_folder() / "prepared"


def content_hash(spec: DocumentsSpec, documents: str, tokenizer: TokenizerSource, vocab_size: int) -> str:
    """Of everything that the files depend on. How rows are cut and how many processes work is not among it.

    A tokenizer that is there already counts as the form will have it: so a run that goes on with its own copy of the tokenizer,
    which knows the template, finds the data that it began with.
    """
    if tokenizer.sample_bytes:
        read_with = tokenizer.fingerprint()
    else:
        read_with = spec.form.build().equip(tokenizer.make(()), vocab_size).fingerprint()
    parts = [FORMAT, documents, read_with, spec.held_out, spec.held_out_bytes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _tokens(
    spec: DocumentsSpec,
    vocab_size: int,
    specials: Sequence[Special],
    plan: Plan,
    documents: Documents,
    target: Path,
    work: Path,
    workers: Workers,
    progress: Progress,
) -> None:
    """Every task after the documents are there."""
    shards = documents.folder / "shards"
    traits = {name: SourceTraits(one.can_cut, one.max_overlap, one.weights()) for name, one in plan.sources.items()}
    form = spec.form.build()
    if form.records:  # a record is no text that could be cut, and its likeness to others is not told by 13 words of JSON
        traits = {name: SourceTraits(False, 1.0, trait.weights) for name, trait in traits.items()}
    splitting = Splitting(shards_folder=shards, share=spec.held_out, most=spec.held_out_bytes, traits=traits)
    split = run(splitting, work, workers, progress) / "00000"
    looking = Looking(shards_folder=shards, split_folder=split)
    looked = run(looking, work, workers, progress)
    deciding = Deciding(looking=looking, looked_folder=looked, share=spec.held_out, traits=traits)
    sides = run(deciding, work, workers, progress) / "00000"
    learning = Learning(
        tokenizer=spec.tokenizer,
        vocab_size=vocab_size,
        specials=tuple(specials),
        form=spec.form,
        shards_folder=shards,
        sides_folder=sides,
    )
    tokenizer = run(learning, work, workers, progress) / "00000" / FOLDER
    encoding = Encoding(shards_folder=shards, sides_folder=sides, tokenizer_folder=tokenizer, form=spec.form)
    encoded = run(encoding, work, workers, progress)
    joining = Joining(
        encoding=encoding,
        encoded_folder=encoded,
        named=tuple(plan.specs),
        about=dict(documents.about),
        described=_plain(spec),
        texts=not form.records,
        target=target,
    )
    run(joining, work, workers, progress)


@dataclass(kw_only=True)
class Joining(Publication):
    """One task: the pieces of the token files joined, under the corpus's name."""

    name: str = "join"
    label: str = "tokenizing"
    encoding: Encoding
    encoded_folder: Path
    named: tuple[str, ...]
    about: dict[str, Any]
    described: dict[str, Any]
    texts: bool
    """Keep what compressors are measured on."""

    def fill(self, whole: Path) -> None:
        tokenizer = self.encoding.tokenizer
        dtype = dtype_for(tokenizer.vocab_size)
        pieces = [self.encoded_folder / f"{place:05d}" for place in range(len(self.encoding.pieces))]
        abouts = [read_about(piece) for piece in pieces]
        counts: dict[str, Any] = {}
        for name in self.named:
            place = whole / SOURCES / name
            place.mkdir(parents=True)
            its = [(piece, about["counts"]) for piece, about in zip(pieces, abouts, strict=True) if about["source"] == name]
            folders, counted = [piece for piece, _ in its], [one for _, one in its]
            counts[name] = {
                part: join(folders, [one[part] for one in counted], part, place, dtype, tokenizer.end_id) for part in PARTS
            }
        tokenizer.save(whole / FOLDER)
        sides = Sides(self.encoding.sides_folder)
        if self.texts:
            write_texts(self.encoding.shards, sides, whole)
        tally = Tally.of(self.about["tally"])
        tally.merge(account(self.encoding.sides_folder))
        write_manifest(
            whole,
            format=FORMAT,
            corpus=self.described,
            dtype=dtype.str,
            end_id=tokenizer.end_id,
            vocab_size=tokenizer.vocab_size,
            records=not self.texts,
            counts={
                **{part: _total([counts[name][part] for name in self.named]) for part in PARTS},
                SOURCES: {name: {**counts[name], "read": self.about["sources"].get(name, {})} for name in self.named},
                "copies": self.about["copies"],
                **tally.plain(),
            },
        )


def _total(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {key: sum(one[key] for one in counts) for key in (*COUNTED, "tokens")}


def _plain(spec: DocumentsSpec) -> dict[str, Any]:
    """For people who look into the manifest."""
    return {
        "held_out": spec.held_out,
        "tokenizer": {"type": type(spec.tokenizer).__name__, **_texts(spec.tokenizer)},
        "form": {"type": type(spec.form).__name__, **_texts(spec.form)},
        "sources": {name: {"type": type(one).__name__, **_texts(one)} for name, one in spec.named().items()},
        "clean": {name: {"type": type(one).__name__, **_texts(one)} for name, one in spec.clean.items()},
    }


def _texts(spec: Any) -> dict[str, str]:
    return {key: str(value) for key, value in dataclasses.asdict(spec).items()}


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
        raise Interrupted(
            f"cannot write prepared data to {folder.parent}: {why}. Finished parts are kept there and are not made again; "
            "make room, or name another folder: data.cache=..."
        ) from error
