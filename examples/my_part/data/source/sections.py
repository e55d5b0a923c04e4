from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from llmfactory.data.source.document import Document, Drops, Source


class MarkdownSections(Source):
    def __init__(self, spec) -> None:
        self.file = Path(spec.file)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def size(self) -> int:
        return self.file.stat().st_size

    def documents(self, drops: Drops) -> Iterator[Document]:
        for number, text in enumerate(self.file.read_text(encoding="utf-8").split("\n#")):
            if text.strip():
                yield Document(f"{self.file}, section {number}", text, group=str(number))
            else:
                drops.add("empty section", f"{self.file}, section {number}")
