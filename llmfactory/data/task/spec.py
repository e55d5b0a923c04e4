"""Catalogue of tasks on labelled examples: which fields of a record are what.

`kind` says what is asked, in the words of `HeadSpec.answers`: a `label` for each text, `labels` for its words, a `span` of it, or
another text (`tokens`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least, stem

if TYPE_CHECKING:
    from llmfactory.data.task.task import Task


@dataclass(kw_only=True, slots=True)
class TaskSpec(Spec):
    """Base of the tasks."""

    kind: ClassVar[str]

    def build(self) -> Task:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of data/task")


@dataclass(kw_only=True, slots=True)
class Classify(TaskSpec):
    """One of a few classes for each text, or pair of texts. Figures: accuracy, macro-F1."""

    kind: ClassVar[str] = "label"
    text: str = "text"
    """Field with the text."""
    pair: str | None = None
    """Field with a second text; None: there is none."""
    label: str = "label"
    """Field with the class, a text or a number."""

    def build(self) -> Task:
        from llmfactory.data.task.classify import Classification

        return Classification(self)


@dataclass(kw_only=True, slots=True)
class Tag(TaskSpec):
    """One tag for each word, B-/I-/O as in named entity recognition. Figures: accuracy of words; precision, recall, F1 of entities."""

    kind: ClassVar[str] = "labels"
    words: str = "words"
    """Field with the list of words."""
    tags: str = "tags"
    """Field with the list of their tags."""

    def build(self) -> Task:
        from llmfactory.data.task.tag import Tagging

        return Tagging(self)


@dataclass(kw_only=True, slots=True)
class Answer(TaskSpec):
    """The part of a text that answers a question (SQuAD; Rajpurkar et al. 2016). Figures: exact match, F1.

    Right answers are objects `{"text": [...], "answer_start": [...]}` (characters, from 0); empty lists: there is no answer.
    """

    kind: ClassVar[str] = "span"
    question: str = "question"
    """Field with the question."""
    context: str = "context"
    """Field with the text that may hold the answer."""
    answers: str = "answers"
    """Field with the right answers."""
    stride: int = 64
    """Texts too long for a row are read in windows that overlap by that many tokens."""
    longest: int = 30
    """Most tokens of an answer."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 0, "stride")
        yield from at_least(self, 1, "longest")

    def build(self) -> Task:
        from llmfactory.data.task.answer import Answering

        return Answering(self)


class Figures(Enum):
    """How written texts are compared with the right ones."""

    bleu = "BLEU and chrF, for translations"
    rouge = "ROUGE-1, -2 and -L, for summaries"


@dataclass(kw_only=True, slots=True)
class Rewrite(TaskSpec):
    """Another text for each: a translation, a summary. Written by greedy or beam search when it is measured."""

    kind: ClassVar[str] = "tokens"
    source: str = "source"
    """Field with the text to read."""
    target: str = "target"
    """Field with the text to write."""
    prefix: str = ""
    """Stands before each source (T5: `translate English to German: `)."""
    figures: Figures = Figures.bleu
    """What is measured."""
    beams: int = 1
    """Of the search; 1: greedy."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "beams")

    def build(self) -> Task:
        from llmfactory.data.task.rewrite import Rewriting

        return Rewriting(self)


def task_of(kind: str) -> str:
    """The option of data/task of a kind."""
    return next(stem(cls) for cls in (Classify, Tag, Answer, Rewrite) if cls.kind == kind)
