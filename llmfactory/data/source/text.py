"""Plain text files: a file is a document, or several with a separating line between them."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from llmfactory.core.errors import UserError
from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source, Unit
from llmfactory.data.source.files import by_file, digest, lines, resolve
from llmfactory.data.source.spec import Text


class TextFiles(Source):
    def __init__(self, spec: Text) -> None:
        self.spec, self.bad_share = spec, spec.bad_share
        self.files = resolve(spec.files, (".txt", ".md", ".rst"))
        self.groups = by_file(self.files)
        # UTF-16 and UTF-32 hold zero bytes and line ends of several bytes: those files are decoded whole.
        self.wide = "\n".encode(spec.encoding) != b"\n"

    def fingerprint(self) -> str:
        return digest(self.files, "text", self.spec.encoding, self.spec.split_on, self.spec.bad_share, *self.groups.values())

    def units(self) -> list[Unit]:
        return [Unit(str(path), path.stat().st_size) for path in self.files]

    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        path = Path(unit.name)
        piece: list[str] = []
        start = 1
        for number, line in self._lines(path, account):
            if self.spec.split_on is not None and line.rstrip("\r\n") == self.spec.split_on:
                yield from self._document(path, start, piece, account)
                piece, start = [], number + 1
            else:
                piece.append(line)
        yield from self._document(path, start, piece, account)

    def _document(self, path: Path, line: int, piece: list[str], account: Account) -> Iterator[Document]:
        text = "".join(piece)
        name = str(path) if self.spec.split_on is None else f"{path}, line {line}"
        if not text.strip():
            account.left_out("empty document", name)
            return
        # The hash of the text as group puts copies of a document on the same side of the split.
        group = self.groups[path] if self.groups else sha256(text.encode()).hexdigest()
        yield Document(name, text, group)

    def _lines(self, path: Path, account: Account) -> Iterator[tuple[int, str]]:
        if self.wide:
            try:
                text = path.read_text(encoding=self.spec.encoding)
            except UnicodeError as error:
                raise UserError(f"{path}: not {self.spec.encoding}: {error}") from error
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror or error}") from error
            yield from enumerate(text.splitlines(keepends=True), 1)
            return
        for number, raw in lines(path):
            try:
                line = raw.decode("utf-8-sig" if number == 1 and self.spec.encoding == "utf-8" else self.spec.encoding)
            except UnicodeDecodeError as error:
                where, reason = f"{path}, line {number}", f"invalid {self.spec.encoding}"
                account.bad(where, reason, f"{error.reason} at byte {error.start}", len(raw), raw)
                continue
            account.good += 1
            yield number, line
