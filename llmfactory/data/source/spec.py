"""Catalogue of sources: where documents come from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as field_
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least, between

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

    code: bool = True
    """Whether source files are among the training text; false: documentation alone, a quarter of the bytes."""

    def build(self) -> Source:
        from llmfactory.data.source.pydocs import PythonDocs

        return PythonDocs(self.code)


@dataclass(kw_only=True, slots=True)
class Pycode(SourceSpec):
    """Source files of the running Python's standard library, a file a document."""

    def build(self) -> Source:
        from llmfactory.data.source.pycode import PythonCode

        return PythonCode()


@dataclass(kw_only=True, slots=True)
class PydocItemsSpec(SourceSpec):
    """Base of the sources that ask about functions, methods and classes of the running Python's standard library."""

    items: int | None = None
    """Of them that are asked about, at most, as a hash of their names decides; None: all, some 6,500."""
    packages: list[str] = field_(default_factory=list)
    """Installed packages that are asked about, too, in the training part alone; names as one imports them: [torch, numpy]. An answer of
    the library whose words stand in one of theirs is not evaluated, so examine a model with those that it was trained with."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "items")
        for name in self.packages:
            left = f"packages=[{','.join(other for other in self.packages if other != name)}]"
            if name in sys.stdlib_module_names:
                yield Problem("packages", name, "is part of the standard library, which is asked about anyway", left)
            elif not name.isidentifier():
                yield Problem(
                    "packages", name, "is no name that one imports: the package itself is meant, not a part of it", left
                )


@dataclass(kw_only=True, slots=True)
class PydocQa(PydocItemsSpec):
    """Questions about functions, methods and classes of the running Python's standard library, answered by their docstrings.
    Held out: the modules that `pydocs` holds out."""

    def build(self) -> Source:
        from llmfactory.data.source.pydoc_qa import PydocQuestions

        return PydocQuestions(self)


@dataclass(kw_only=True, slots=True)
class PydocPairs(PydocItemsSpec):
    """The same questions, each with its docstring as the chosen answer and another of the same module as the rejected one."""

    rejected: int = 1
    """Pairs of a docstring at most, each with another rejected answer; one of them is evaluated where its module is held out."""

    def problems(self) -> Iterator[Problem]:
        yield from PydocItemsSpec.problems(self)
        yield from at_least(self, 1, "rejected")

    def build(self) -> Source:
        from llmfactory.data.source.pydoc_pairs import PydocPreferences

        return PydocPreferences(self)


@dataclass(kw_only=True, slots=True)
class PydocChoices(PydocItemsSpec):
    """The same questions as multiple choice: rankings of docstrings of the same module, the right one first."""

    choices: int = 4
    """Answers to choose from."""
    rankings: int = 1
    """Rankings of a docstring at most, each with other wrong answers; one of them is evaluated where its module is held out."""

    def problems(self) -> Iterator[Problem]:
        yield from PydocItemsSpec.problems(self)
        yield from at_least(self, 2, "choices")
        yield from at_least(self, 1, "rankings")

    def build(self) -> Source:
        from llmfactory.data.source.pydoc_choices import PydocMultipleChoice

        return PydocMultipleChoice(self)


class Format(Enum):
    """What stands in files."""

    text = "text"
    html = "html"
    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    arrow = "arrow"
    warc = "warc"


@dataclass(kw_only=True, slots=True)
class Files(SourceSpec):
    """Files of any known format: also packed (gz, zst, xz, bz2), also within zip and tar archives."""

    files: list[str]
    """Paths, folders or globs (`**` too), relative to where the command runs."""
    format: Format | None = None
    """How they are read; None: as the ends of their names say."""
    field: str | None = "text"
    """Of formats of records: the field or column that holds the text (`a.b`: b within a); null: the whole record, as JSON."""
    encoding: str = "utf-8"
    """Of text; auto: found out for each file. HTML pages say their own."""
    split_on: str | None = None
    """A line that separates documents within a text file; None: a file is one document."""
    bad_share: float = 0.0
    """Share of records (lines of plain text) that may be unreadable before the run fails; each is set aside with file and line."""
    max_record_bytes: int = 16 << 20
    """Bytes of a record, a page or a line; a longer one is unreadable."""
    max_expansion: float = 200.0
    """How many times its size a packed file may unpack to, 64 MiB in any case; what follows is unreadable."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "bad_share")
        yield from at_least(self, 1, "max_record_bytes", "max_expansion")
        if self.files == []:
            yield Problem("files", self.files, "no file is named", "files=[README.md]")
        try:
            known = self.encoding == "auto" or "x".encode(self.encoding).decode(self.encoding) == "x"
        except (LookupError, UnicodeError):  # none of that name, or one that makes no text (hex)
            known = False
        if not known:
            yield Problem("encoding", self.encoding, "is no encoding that Python knows", "encoding=utf-8")

    def build(self) -> Source:
        from llmfactory.data.source.files import LocalFiles

        return LocalFiles(self)


@dataclass(kw_only=True, slots=True)
class HfDisk(SourceSpec):
    """A folder that `save_to_disk` of Hugging Face datasets has made."""

    path: str
    """The folder, relative to where the command runs."""
    split: str | None = "train"
    """Name of the split where the folder holds several; None: all of them."""
    field: str | None = "text"
    """The column that holds the text (`a.b`: b within a); null: the whole row, as JSON."""
    bad_share: float = 0.0
    """Share of rows that may be unreadable before the run fails; each is set aside with file and row."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "bad_share")

    def build(self) -> Source:
        from llmfactory.data.source.hf_disk import saved

        return saved(self)


@dataclass(kw_only=True, slots=True)
class Hub(SourceSpec):
    """A dataset of the Hugging Face hub, streamed, or a copy of its files."""

    id: str
    """Of the dataset on the hub, or a folder that is laid out as one there."""
    name: str | None = None
    """Of the configuration (a language, a sample); None: the only one."""
    split: str = "train"
    """Which part of it."""
    revision: str | None = None
    """Commit, tag or branch on the hub; None: main, as it is when the run begins."""
    data_files: list[str] = field_(default_factory=list)
    """Files of the dataset's repository, globs among them; empty: those of the configuration."""
    field: str | None = "text"
    """The column that holds the text (`a.b`: b within a); null: the whole row, as JSON."""
    path: str | None = None
    """Folder, file or glob of a local copy with the same columns, which is read instead; None: from the hub."""
    bad_share: float = 0.0
    """Share of rows that may be unreadable before the run fails; each is set aside with its number."""

    def problems(self) -> Iterator[Problem]:
        yield from between(self, 0.0, 1.0, "bad_share")

    def build(self) -> Source:
        from llmfactory.data.source.hub import HubDataset, copied

        return HubDataset(self) if self.path is None else copied(self, self.path)
