"""What every reader of a format is handed, and what all of them give: (name, text) of each document, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.data.source.account import Account
from llmfactory.data.source.record import Bad

if TYPE_CHECKING:
    from llmfactory.data.source.spec import Files

Texts = Iterator[tuple[str, str]]
"""(name of the document, its text)"""


@dataclass(slots=True)
class Reading:
    spec: Files
    account: Account
    where: str
    """The file, or the archive and its member."""
    encoding: str = "utf-8"
    line: int = 1
    """Number of the first line, row or record."""
    start: int = 0
    """Byte at which the piece of the file begins."""
    stop: int | None = None
    """Byte before which a line of the piece begins; None: to the end."""

    def bad(self, name: str, bad: Bad, size: int, content: bytes | str) -> None:
        self.account.bad(name, *bad, size, content)

    def text(self, name: str, found: str | Bad, size: int, content: bytes | str) -> Texts:
        """The document of a record, or none and why not."""
        if isinstance(found, tuple):
            self.bad(name, found, size, content)
            return
        yield from self.account_for(name, found, 1, size)

    def account_for(self, name: str, text: str, records: int, size: int) -> Texts:
        """The document of so many good records, if there is anything in it."""
        self.account.good += records
        if text and not text.isspace():
            yield name, text
        else:
            self.account.left_out("empty document", name, size)
