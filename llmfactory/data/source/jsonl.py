"""JSON lines: one object a line, one of its fields is the document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source, Unit
from llmfactory.data.source.files import by_file, digest, lines, resolve
from llmfactory.data.source.spec import Jsonl


class JsonLines(Source):
    def __init__(self, spec: Jsonl) -> None:
        self.spec, self.bad_share = spec, spec.bad_share
        self.files = resolve(spec.files, (".jsonl", ".ndjson", ".json"))
        self.groups = by_file(self.files)

    def fingerprint(self) -> str:
        return digest(self.files, "jsonl", self.spec.field, self.spec.bad_share, *self.groups.values())

    def units(self) -> list[Unit]:
        return [Unit(str(path), path.stat().st_size) for path in self.files]

    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        path = Path(unit.name)
        for number, raw in lines(path):
            if not raw.strip():
                continue
            name, found = f"{path}, line {number}", self._text(raw)
            if isinstance(found, tuple):
                account.bad(name, *found, len(raw), raw)
                continue
            account.good += 1
            if not found.strip():
                account.left_out("empty document", name)
                continue
            # The hash of the text as group puts copies of a document on the same side of the split.
            group = self.groups[path] if self.groups else sha256(found.encode()).hexdigest()
            yield Document(name, found, group)

    def _text(self, raw: bytes) -> str | tuple[str, str]:
        """The document, or (reason, detail) of why there is none."""
        field = self.spec.field
        try:
            record = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            return "invalid utf-8", f"{error.reason} at byte {error.start}"
        except json.JSONDecodeError as error:
            return "invalid JSON", f"{error.msg} at column {error.colno}"
        except RecursionError:
            return "invalid JSON", "nested too deeply"
        if not isinstance(record, dict):
            return "no object", f"a {type(record).__name__} where an object is expected"
        if field not in record:
            return "missing field", f"no field {field!r} among {sorted(record)[:10]}"
        text = record[field]
        if not isinstance(text, str):
            return "wrong type", f"field {field!r} is a {type(text).__name__}, not a string"
        try:
            text.encode()
        except UnicodeEncodeError:  # "\ud800" is legal JSON and no text
            return "invalid utf-8", f"field {field!r} holds half of a surrogate pair"
        return text
