"""Catalogue of sources: where documents come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, between

if TYPE_CHECKING:
    from llmfactory.data.source.document import Source


@dataclass(kw_only=True, slots=True)
class SourceSpec(Spec):
    """Base of the sources."""

    def build(self) -> Source:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of data/source")


@dataclass(kw_only=True, slots=True)
class Pydocs(SourceSpec):
    """Documentation, docstrings and source of the running Python's standard library. Held out: documentation only."""

    def build(self) -> Source:
        from llmfactory.data.source.pydocs import PythonDocs

        return PythonDocs()


@dataclass(kw_only=True, slots=True)
class Pycode(SourceSpec):
    """Source files of the running Python's standard library, a file a document."""

    def build(self) -> Source:
        from llmfactory.data.source.pycode import PythonCode

        return PythonCode()


@dataclass(kw_only=True, slots=True)
class Text(SourceSpec):
    """Plain text files, a file a document."""

    files: list[str]
    """Paths, folders or globs (`**` too), relative to where the command runs."""
    encoding: str = "utf-8"
    """Of the files."""
    split_on: str | None = None
    """A line that separates documents within a file; None: a file is one document."""
    bad_share: float = 0.0
    """Share of lines that may be undecodable before the run fails; each is dropped and reported with file and line."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "bad_share")
        if self.files == []:
            yield Problem("files", self.files, "no file is named", "files=[README.md]")
        try:
            known = "x".encode(self.encoding).decode(self.encoding) == "x"
        except (LookupError, UnicodeError):  # none of that name, or one that makes no text (hex)
            known = False
        if not known:
            yield Problem("encoding", self.encoding, "is no encoding that Python knows", "encoding=utf-8")

    def build(self) -> Source:
        from llmfactory.data.source.text import TextFiles

        return TextFiles(self)


@dataclass(kw_only=True, slots=True)
class Jsonl(SourceSpec):
    """JSON lines: an object a line, one of its fields is the document."""

    files: list[str]
    """Paths, folders or globs (`**` too), relative to where the command runs."""
    field: str = "text"
    """Name of the object's field that holds the text."""
    bad_share: float = 0.0
    """Share of lines that may be unreadable before the run fails; each is dropped and reported with file and line."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "bad_share")
        if self.files == []:
            yield Problem("files", self.files, "no file is named", "files=[data.jsonl]")

    def build(self) -> Source:
        from llmfactory.data.source.jsonl import JsonLines

        return JsonLines(self)
