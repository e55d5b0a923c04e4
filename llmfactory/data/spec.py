"""Catalogue of data: sources of documents, what they mean and how they are cleaned, a tokenizer, packing, and how they are split."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least
from llmfactory.data.clean.spec import CleanSpec
from llmfactory.data.form.spec import FormSpec, Text
from llmfactory.data.mix.spec import ByTokens, MixSpec
from llmfactory.data.pack.spec import PackSpec
from llmfactory.data.source.spec import SourceSpec
from llmfactory.data.task.spec import TaskSpec
from llmfactory.data.tokenizer.spec import TokenizerSpec


@dataclass(kw_only=True, slots=True)
class DataSpec(Spec):
    """Base of what a job reads."""

    tokenizer: TokenizerSpec
    seq_len: int
    """Tokens in a row, T."""
    held_out: float = 0.05
    """Share kept for evaluation (of documents by text length, or of examples); chosen by a hash, so that it is stable."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 2, "seq_len")
        if not 0.0 <= self.held_out <= 0.9:
            yield Problem("held_out", self.held_out, "must lie between 0.0 and 0.9", "held_out=0.05")


@dataclass(kw_only=True, slots=True)
class DocumentsSpec(DataSpec):
    """Base of documents that are read and cleaned once, tokenized once, kept as memory-mapped token files, and cut into rows when
    they are read."""

    form: FormSpec = field(default_factory=Text)
    """What a document means."""
    clean: dict[str, CleanSpec] = field(default_factory=dict)
    """Steps that documents go through, in order, by name: 'data/clean=[unicode,exact]'."""
    pack: PackSpec
    held_out_bytes: int = 16_000_000
    """Bytes of text that are held out at most, over all sources, however large the share would be."""
    cache: str | None = None
    """Folder of prepared data; None: llmfactory/ in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    workers: int | None = None
    """Processes that read, clean and tokenize; None: as many as the machine has cores. The result does not depend on it."""

    @abstractmethod
    def named(self) -> Mapping[str, SourceSpec]:
        """The sources by name."""

    def problems(self) -> Iterator[Problem]:
        yield from DataSpec.problems(self)
        yield from at_least(self, 1, "workers", "held_out_bytes")


CORPUS = "corpus"
"""Name of the only source."""


def key_of(source: str, named: Iterable[str]) -> str:
    """The dotted key of a source among those named."""
    return "data.source" if set(named) == {CORPUS} else f"data.sources.{source}"


@dataclass(kw_only=True, slots=True)
class Corpus(DocumentsSpec):
    """Documents of one source."""

    source: SourceSpec

    def named(self) -> Mapping[str, SourceSpec]:
        return {CORPUS: self.source}


@dataclass(kw_only=True, slots=True)
class Mixture(DocumentsSpec):
    """Documents of several sources, drawn from in proportions.    llmfactory 'data/source=[pydocs,pycode]'"""

    sources: dict[str, SourceSpec] = field(default_factory=dict)
    """By name."""
    mix: MixSpec = field(default_factory=ByTokens)
    """What share of the training tokens each source gives."""

    def named(self) -> Mapping[str, SourceSpec]:
        return self.sources

    def problems(self) -> Iterator[Problem]:
        yield from DocumentsSpec.problems(self)
        if not self.sources:
            yield Problem("sources", {}, "a mixture needs a source at least", "data/source=[pydocs,pycode]")
        else:
            yield from self.mix.against(list(self.sources))


@dataclass(kw_only=True, slots=True)
class Labelled(DataSpec):
    """Labelled examples from JSON lines, one row each (a text too long for one may take several)."""

    task: TaskSpec
    files: list[str]
    """Files, folders or globs of JSON lines (.jsonl, .ndjson, .json)."""
    held_out_files: list[str] = field(default_factory=list)
    """The same, to evaluate on; empty: a share of `files`, as `held_out` says."""
    bad_share: float = 0.0
    """Share of lines that may be no example of the task; they are dropped and counted. 0: the first one is an error."""

    def problems(self) -> Iterator[Problem]:
        yield from DataSpec.problems(self)
        if not self.files:
            yield Problem("files", [], "names no file", "files=[my.jsonl]")
        if not 0.0 <= self.bad_share <= 1.0:
            yield Problem("bad_share", self.bad_share, "must lie between 0.0 and 1.0", "bad_share=0.01")
