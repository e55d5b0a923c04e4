"""Documents to tokens: pieces of the corpus become pieces of token files, which are then joined in order.

A piece is one task, so any number of processes may work on them, and the result is the same.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.errors import UserError
from llmfactory.data.form.form import BadDocument, Encoded, Form
from llmfactory.data.form.spec import FormSpec
from llmfactory.data.shard import Piece, Shards, write_about
from llmfactory.data.sides import Sides
from llmfactory.data.tasks import Phase
from llmfactory.data.tokenizer.tokenizer import Tokenizer, load
from llmfactory.data.tokens import dtype_for

PIECE = 16 << 20
"""Bytes of text that one task tokenizes."""
CHUNK = 1 << 18
"""Bytes of text that the tokenizer is given at once."""
PARTS = ("train", "held_out")
COUNTED = ("documents", "bytes", "targets", "too_long", "unwritable", "cut")
"""What is counted of a part beside its tokens."""
LENGTHS, RECORDS, NOTES, NOTE_LENGTHS = ".lengths", ".counts", ".notes", ".note_lengths"


class TokenWriter:
    """A piece of a token file: an end before each sequence, and the numbers of what was written."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype[np.unsignedinteger], end_id: int) -> None:
        self.folder, self.name, self.dtype, self.end = folder, name, dtype, np.array([end_id], dtype)
        self._tokens = (folder / f"{name}.bin").open("wb")
        self._mask: BinaryIO | None = None  # there are none as long as all tokens are targets
        self._notes = (folder / f"{name}{NOTES}").open("wb")
        self._lengths, self._records, self._note_lengths = array("q"), array("q"), array("q")
        self.documents = self.bytes = self.tokens = self.targets = 0
        self.too_long = self.unwritable = self.cut = 0
        """Documents left out for their length, those that their template cannot write, and tokens that others lost for their length."""

    def add(self, documents: Sequence[Sequence[Encoded] | None], size: int) -> None:
        """Documents with so many bytes of text; each is one record."""
        pieces: list[NDArray[np.unsignedinteger]] = []
        for made in documents:
            sequences = made or ()
            self._records.append(len(sequences))
            self.too_long += made is not None and not made
            self.unwritable += made is None
            self.cut += sum(one.cut for one in sequences)
            for one in sequences:
                ids = np.asarray(one.ids, self.dtype)
                self._lengths.append(len(ids))
                pieces += (self.end, ids)
                self._mark(one.targets, len(ids) + 1)
                note = one.note.encode()
                self._notes.write(note)
                self._note_lengths.append(len(note))
                self.tokens += len(ids) + 1
        if pieces:
            self._tokens.write(np.concatenate(pieces).tobytes())
        self.documents += len(documents)
        self.bytes += size

    def _mark(self, targets: NDArray[np.bool_] | None, size: int) -> None:
        if targets is not None and len(targets) != size:
            raise ValueError(f"{len(targets)} marks for {size - 1} tokens and an end")
        self.targets += size if targets is None else int(targets.sum())
        if targets is not None and self._mask is None:
            self._mask = (self.folder / f"{self.name}.mask").open("wb")
            self._mask.write(b"\1" * self.tokens)
        if self._mask is not None:
            self._mask.write(b"\1" * size if targets is None else targets.astype(np.uint8).tobytes())

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for file in (self._tokens, self._notes, *([self._mask] if self._mask is not None else [])):
            file.close()

    def close(self) -> dict[str, Any]:
        """The counts of what was written."""
        self._close()
        for suffix, values in ((LENGTHS, self._lengths), (RECORDS, self._records), (NOTE_LENGTHS, self._note_lengths)):
            np.array(values, "<i8").tofile(self.folder / f"{self.name}{suffix}")
        several = any(count != 1 for count in self._records)
        noted = any(self._note_lengths)
        counts = {name: getattr(self, name) for name in (*COUNTED, "tokens")}
        return {**counts, "masked": self._mask is not None, "several": several, "noted": noted}


@dataclass(kw_only=True)
class Encoding(Phase):
    """A task a piece of the documents."""

    name: str = "encode"
    label: str = "tokenizing"
    shards_folder: Path
    sides_folder: Path
    tokenizer_folder: Path
    form: FormSpec

    @cached_property
    def shards(self) -> Shards:
        return Shards.of(self.shards_folder)

    @cached_property
    def pieces(self) -> list[Piece]:
        return self.shards.pieces(PIECE)

    @cached_property
    def sides(self) -> Sides:
        return Sides(self.sides_folder)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load(self.tokenizer_folder)

    @cached_property
    def opened(self) -> Form:
        return self.form.build()

    def sizes(self) -> Sequence[int]:
        return [piece.bytes for piece in self.pieces]

    def do(self, number: int, folder: Path) -> None:
        piece = self.pieces[number]
        dtype = dtype_for(self.tokenizer.vocab_size)
        with ExitStack() as stack, one_library_thread():
            writers = {part: stack.enter_context(TokenWriter(folder, part, dtype, self.tokenizer.end_id)) for part in PARTS}
            self._encode(piece, writers)
            counts = {part: writers[part].close() for part in PARTS}
        write_about(folder, source=self.shards.shards[piece.shard].source, counts=counts)

    def _encode(self, piece: Piece, writers: Mapping[str, TokenWriter]) -> None:
        waiting: dict[str, list[str]] = {part: [] for part in PARTS}
        names: dict[str, list[str]] = {part: [] for part in PARTS}
        sizes = dict.fromkeys(PARTS, 0)

        def flush(part: str) -> None:
            if waiting[part]:
                try:
                    encoded = self.opened.encode(self.tokenizer, waiting[part])
                except BadDocument as error:
                    raise UserError(f"{names[part][error.number]}: {error}") from error
                writers[part].add(encoded, sizes[part])
                waiting[part], names[part], sizes[part] = [], [], 0

        for place, entry in enumerate(self.shards.shards[piece.shard].read(piece.first, piece.stop), piece.start):
            for part, text in self.sides.parts(place, entry.text):
                waiting[part].append(text)
                names[part].append(entry.name)
                sizes[part] += len(text.encode())
                if sizes[part] >= CHUNK:
                    flush(part)
        for part in PARTS:
            flush(part)


def join(
    pieces: Sequence[Path], counts: Sequence[dict[str, Any]], part: str, folder: Path, dtype: Any, end_id: int
) -> dict[str, int]:
    """The token file of one part of one source, out of its pieces in order; what is in it."""
    masked, several, noted = (any(one[key] for one in counts) for key in ("masked", "several", "noted"))
    path = folder / f"{part}.bin"
    with path.open("wb") as file:
        _append(file, [piece / path.name for piece in pieces])
        file.write(np.array([end_id], dtype).tobytes())
    lengths = _numbers(pieces, part, LENGTHS)
    _running(lengths + 1).tofile(folder / f"{part}.offsets")
    if masked:
        _join_masks(pieces, counts, part, folder)
    if several:
        _running(_numbers(pieces, part, RECORDS)).tofile(folder / f"{part}.records")
    if noted:
        with (folder / f"{part}.notes").open("wb") as file:
            _append(file, [piece / f"{part}{NOTES}" for piece in pieces])
        _running(_numbers(pieces, part, NOTE_LENGTHS)).tofile(folder / f"{part}.notes.offsets")
    total = {key: sum(one[key] for one in counts) for key in COUNTED}
    return {**total, "tokens": sum(one["tokens"] for one in counts) + 1}


def _join_masks(pieces: Sequence[Path], counts: Sequence[dict[str, Any]], part: str, folder: Path) -> None:
    """A piece has for each sequence the marks of its ids and of the end behind it; the file starts with the end before all."""
    with (folder / f"{part}.mask").open("wb") as file:
        file.write(b"\0")
        for piece, its in zip(pieces, counts, strict=True):
            if its["masked"]:
                _append(file, [piece / f"{part}.mask"])
            else:
                file.write(b"\1" * its["tokens"])


def _append(file: BinaryIO, paths: Sequence[Path]) -> None:
    """The contents of some files, one after the other."""
    for path in paths:
        with path.open("rb") as source:
            while block := source.read(1 << 22):
                file.write(block)


def _numbers(pieces: Sequence[Path], part: str, suffix: str) -> NDArray[np.int64]:
    found = [np.fromfile(piece / f"{part}{suffix}", "<i8") for piece in pieces]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _running(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n + 1], the sums of the first 0, 1, ..., n."""
    return np.concatenate([[0], np.cumsum(counts)]).astype("<i8")


@contextmanager
def one_library_thread() -> Iterator[None]:
    """Keep `tokenizers` from starting a pool in each of our processes: there are as many as were asked for."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
