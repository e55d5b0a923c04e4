"""All documents of a source, read once and kept in a temporary file: preparation looks at each several times.

So the files of the user are read once, cannot change between two looks, and memory holds a few numbers a document.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from llmfactory.data.source.document import Document


class Spool:
    """`groups` and `evaluated` hold what their names say of each document; a group is the hash of its name."""

    def __init__(self, path: Path) -> None:
        self.paths = (path, path.with_suffix(".names"))
        self._texts = self.paths[0].open("w+b", buffering=1 << 20)
        self._names = self.paths[1].open("w+b", buffering=1 << 16)
        self.starts = array("q", [0])
        self.groups = array("Q")
        self.evaluated = array("b")
        self.names = array("q", [0])
        self._reading = False
        """Whether the files stand somewhere else than at their ends."""

    def __len__(self) -> int:
        return len(self.groups)

    def add(self, document: Document) -> None:
        text, name = document.text.encode(), document.name.encode(errors="replace")
        if self._reading:
            self._texts.seek(self.starts[-1])
            self._names.seek(self.names[-1])
            self._reading = False
        self._texts.write(text)
        self._names.write(name)
        self.starts.append(self.starts[-1] + len(text))
        self.names.append(self.names[-1] + len(name))
        self.groups.append(int.from_bytes(sha256(document.group.encode(errors="replace")).digest()[:8], "big"))
        self.evaluated.append(document.evaluated)

    def size(self, index: int) -> int:
        """Bytes of the document's text."""
        return self.starts[index + 1] - self.starts[index]

    def text(self, index: int) -> str:
        self._reading = True
        self._texts.seek(self.starts[index])
        return self._texts.read(self.size(index)).decode()

    def name(self, index: int) -> str:
        self._reading = True
        self._names.seek(self.names[index])
        return self._names.read(self.names[index + 1] - self.names[index]).decode()

    def texts(self, indices: Iterable[int]) -> Iterator[str]:
        return (self.text(index) for index in indices)

    def close(self) -> None:
        self._texts.close()
        self._names.close()
