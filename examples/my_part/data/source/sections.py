from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from llmfactory.data.source.account import Account
from llmfactory.data.source.document import Document, Source, Unit


class MarkdownSections(Source):
    def __init__(self, spec) -> None:
        self.file = Path(spec.file)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def units(self) -> list[Unit]:
        return [Unit(str(self.file), self.file.stat().st_size)]

    def documents(self, unit: Unit, account: Account) -> Iterator[Document]:
        for number, text in enumerate(self.file.read_text(encoding="utf-8").split("\n#")):
            account.good += 1
            if text.strip():
                yield Document(f"{self.file}, section {number}", text, group=str(number))
            else:
                account.left_out("empty section", f"{self.file}, section {number}")
