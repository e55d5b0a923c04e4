"""Files of the user, of every known format, packed or not, in archives or not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from llmfactory.core.errors import UserError
from llmfactory.data.source import archive, columnar, encoding, json_list, jsonl, plain, table, warc
from llmfactory.data.source.account import Account
from llmfactory.data.source.digest import UNIT, Digest, digests, unchanged
from llmfactory.data.source.document import Document, Source, Unit
from llmfactory.data.source.kinds import SEEKING, Container, Kind, kind, suffixes
from llmfactory.data.source.paths import by_file, resolve
from llmfactory.data.source.reading import Reading, Texts
from llmfactory.data.source.spec import Files, Format
from llmfactory.data.source.streams import Budget, Damaged, Stamp, opened, seek_line, unpacked

READERS: dict[Format, Callable[[BinaryIO, Reading], Texts]] = {
    Format.text: plain.text,
    Format.html: plain.page,
    Format.jsonl: jsonl.read,
    Format.json: json_list.read,
    Format.csv: table.comma,
    Format.tsv: table.tab,
    Format.warc: warc.read,
}
LINES = (Format.text, Format.jsonl)
"""Can be read from any line on."""
TOGETHER = 8 << 20
"""Bytes of small files that are read as one piece: a piece has its costs, and few pieces leave processes idle."""
CODED = (Format.text, Format.jsonl, Format.json, Format.csv, Format.tsv)
"""Are in the encoding of the option."""


class LocalFiles(Source):
    def __init__(self, spec: Files) -> None:
        self.spec, self.bad_share = spec, spec.bad_share
        self.paths = resolve(spec.files, suffixes(spec.format))
        self.kinds = [self._kind(path) for path in self.paths]
        self.groups = by_file(self.paths)

    def _kind(self, path: Path) -> Kind:
        found = kind(path.name, self.spec.format)
        if found.format is None and found.container is None:
            raise UserError(f"{path}: its name does not say what it is: data.source.format=text (or jsonl, csv, ...)")
        if found.compression and (found.format in SEEKING or found.container is Container.zip):
            raise UserError(f"{path}: a file of this kind cannot be read while it is packed: unpack it first")
        return found

    @cached_property
    def _digests(self) -> list[Digest]:
        return digests(self.paths)

    def fingerprint(self) -> str:
        spec = self.spec
        options = (spec.field, spec.encoding, spec.split_on, spec.bad_share, spec.max_record_bytes, spec.max_expansion)
        total = hashlib.sha256(repr(options).encode())
        for path, it, digest in zip(self.paths, self.kinds, self._digests, strict=True):
            total.update(repr((it, digest.content, self.groups.get(path))).encode())
        return f"files {total.hexdigest()}"

    def units(self) -> list[Unit]:
        """Pieces of large files; small files that follow one another are read together."""
        found: list[Unit] = []
        small: list[Unit] = []
        for path, it, digest in zip(self.paths, self.kinds, self._digests, strict=True):
            units = list(self._units(path, it, digest))
            if small and (len(units) > 1 or sum(unit.size for unit in (*small, *units)) > TOGETHER):
                found.append(_together(small))
                small = []
            if len(units) > 1:
                found += units
            else:
                small += units
        return [*found, _together(small)] if small else found

    def _units(self, path: Path, it: Kind, digest: Digest) -> Iterator[Unit]:
        size = digest.stamp[0]
        whole = Unit(str(path), size, ((str(path), digest.stamp, None),))

        def part(name: str, size: int, *piece: int) -> Unit:
            return Unit(f"{path}, {name}", size, ((str(path), digest.stamp, piece),))

        try:
            if size <= UNIT and (it.container is not Container.zip or not size):
                yield whole
            elif it.format in LINES and not it.compression and not self._is_wide(path):
                for i, start in enumerate(range(0, size, UNIT)):
                    yield part(f"bytes from {start}", min(UNIT, size - start), start, start + UNIT, digest.lines[i])
            elif it.format in SEEKING:
                pieces = columnar.parquet_pieces if it.format is Format.parquet else columnar.arrow_pieces
                found = pieces(path, UNIT)
                yield from (part(f"rows from {row}", size // len(found), first, last, row) for first, last, row in found)
            elif it.container is Container.zip:
                runs = archive.zip_pieces(path, UNIT)
                if len(runs) < 2:
                    yield whole
                else:
                    yield from (part(f"members from {first}", taken, first, last) for first, last, taken in runs)
            else:
                yield whole
        except Damaged:  # is met again, and set aside, when it is read
            yield whole

    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        for name, stamp, piece in unit.place:
            yield from self._piece(Path(name), stamp, piece, account)

    def _piece(self, path: Path, stamp: Stamp, piece: tuple[int, ...] | None, account: Account) -> Iterator[Document]:
        unchanged(path, stamp)
        reading = Reading(self.spec, account, str(path))
        group = self.groups.get(path)
        if not stamp[0]:
            account.left_out("empty file", str(path))
            return
        for where, text in self._guarded(self._texts(path, piece, reading), reading):
            # The hash of the text as group puts copies of a document on the same side of the split.
            yield Document(where, text, group or sha256(text.encode()).hexdigest())
        unchanged(path, stamp)

    def _guarded(self, texts: Texts, reading: Reading) -> Texts:
        """The texts; what cannot be read from a place on is one bad record."""
        last = ""
        try:
            for name, text in texts:
                last = name
                yield name, text
        except Damaged as error:
            rest = f"; what follows {last} is lost" if last else ""
            reading.bad(reading.where, (error.reason, f"{error.detail}{rest}"), 0, "")
        except OSError as error:
            raise UserError(f"cannot read {reading.where}: {error.strerror or error}") from error

    def _texts(self, path: Path, piece: tuple[int, ...] | None, reading: Reading) -> Texts:
        it = kind(path.name, self.spec.format)
        if it.format in SEEKING:
            first, last, reading.line = piece or (0, 1 << 60, 1)
            read = columnar.parquet if it.format is Format.parquet else columnar.ipc
            yield from read(path, first, last, reading)
        elif it.container is Container.zip:
            first, last = piece or (0, 1 << 60)
            members = archive.zip_members(path, first, last, self.spec.max_expansion, reading.account)
            yield from self._members(members, reading)
        else:
            with opened(path) as file:
                budget = Budget(path.stat().st_size, self.spec.max_expansion)
                if it.container is Container.tar:
                    stream = unpacked(file, it.compression, budget)
                    members = archive.tar_members(path, stream, budget, reading.account)
                    yield from self._members(members, reading)
                else:
                    if piece:
                        reading.start, reading.stop, ends = piece
                        reading.encoding = self._encoding(file)
                        reading.line = 1 + ends + seek_line(file, reading.start)
                    yield from self._file(file, it, budget, reading)

    def _members(self, members: archive.Members, reading: Reading) -> Texts:
        for name, file, size in members:
            it = kind(name, self.spec.format)
            inner = Reading(self.spec, reading.account, name)
            if it.container or it.format in SEEKING:
                reading.bad(name, ("cannot be read within an archive", "unpack the archive first"), 0, "")
            elif it.format is None:
                reading.account.left_out("of no known format", name)
            else:
                yield from self._guarded(self._file(file, it, Budget(size, self.spec.max_expansion), inner), inner)

    def _file(self, file: BinaryIO, it: Kind, budget: Budget, reading: Reading) -> Texts:
        stream = unpacked(file, it.compression, budget)
        format = it.format
        assert format is not None
        if format in CODED and reading.stop is None:
            reading.encoding = self._encoding(stream)
            if encoding.is_wide(reading.encoding) or (format is Format.json and reading.encoding != "utf-8"):
                stream, reading.encoding = encoding.utf8(stream, reading.encoding), "utf-8"
        if format is Format.json and self.spec.format is None and json_list.is_lines(stream):
            format = Format.jsonl
        yield from READERS[format](stream, reading)

    def _encoding(self, file: BinaryIO) -> str:
        """Of a file that stands at its beginning."""
        return encoding.told(encoding.sample_of(file)) if self.spec.encoding == encoding.AUTO else self.spec.encoding

    def _is_wide(self, path: Path) -> bool:
        with opened(path) as file:
            return encoding.is_wide(self._encoding(file))


def _together(units: list[Unit]) -> Unit:
    if len(units) == 1:
        return units[0]
    place = tuple(place for unit in units for place in unit.place)
    return Unit(f"{units[0].name} and {len(units) - 1} more", sum(unit.size for unit in units), place)
