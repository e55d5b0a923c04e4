"""Catalogue of forms: what a document of a source means, and how it becomes tokens with targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least
from llmfactory.data.form.template.spec import Own, TemplateSpec

if TYPE_CHECKING:
    from llmfactory.data.form.form import Form


@dataclass(kw_only=True, slots=True)
class FormSpec(Spec):
    """Base of the forms."""

    def build(self) -> Form:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of data/form")


@dataclass(kw_only=True, slots=True)
class Text(FormSpec):
    """A document is a text, and every token of it a target."""

    def build(self) -> Form:
        from llmfactory.data.form.text import PlainText

        return PlainText()


class TooLong(Enum):
    """What becomes of records that are longer than allowed."""

    drop = "drop"
    """They are left out and counted."""
    left = "left"
    """The first questions and answers are left out, one after the other, the system message stays; then as `right`."""
    right = "right"
    """What is behind the last token allowed is cut off."""


class Unwritable(Enum):
    """What becomes of conversations that the template cannot write: with tools that it does not know, roles in another order."""

    refuse = "refuse"
    """The first one ends the run, with its file and place."""
    drop = "drop"
    """They are left out and counted."""


@dataclass(kw_only=True, slots=True)
class RecordSpec(FormSpec):
    """Base of the forms whose documents are records, JSON objects that many formats write: alpaca, ShareGPT, OpenAI's messages, ..."""

    kind: ClassVar[str]
    """Name of the kind of record that it reads (data/record/record.py)."""
    template: TemplateSpec = field(default_factory=Own)
    """How conversations are written out."""
    format: str | None = None
    """Name of the format of all rows; None: of each row the first that fits it, as the report of preparing tells."""
    fields: dict[str, str] = field(default_factory=dict)
    """Names of fields that the files call otherwise: {instruction: question_zh, output: answer_zh}."""
    system: str | None = None
    """System message of conversations that have none; None: they stay without."""
    max_tokens: int | None = None
    """Tokens of a sequence at most, the one that ends it included; None: as long as they come, whatever the length of a row."""
    too_long: TooLong = TooLong.right
    """What becomes of longer ones."""
    unwritable: Unwritable = Unwritable.refuse
    """What becomes of conversations that the template cannot write."""

    def problems(self) -> Iterator[Problem]:
        from llmfactory.data.record.formats import FORMATS

        yield from at_least(self, 8, "max_tokens")
        known = [one.name for one in FORMATS if one.kind.name == self.kind]
        if self.format is not None and self.format not in known:
            yield Problem("format", self.format, f"is no format of such records: there are {', '.join(known)}", "format=null")


class TrainOn(Enum):
    """Which tokens of a conversation are learned."""

    answers = "answers"
    """What the assistant writes, the end of each turn included; not answers of weight 0."""
    last = "last"
    """The last answer alone."""
    everything = "everything"
    """All tokens, as in a text."""


@dataclass(kw_only=True, slots=True)
class Chat(RecordSpec):
    """Conversations with one or many turns, with tools; what is learned is what the assistant writes."""

    kind: ClassVar[str] = "conversation"
    train_on: TrainOn = TrainOn.answers
    """Which tokens are targets."""

    def build(self) -> Form:
        from llmfactory.data.form.chat import ChatForm

        return ChatForm(self)


@dataclass(kw_only=True, slots=True)
class SidedSpec(RecordSpec):
    """Base of the forms with one answer or several to a prompt, and more to know of them; one record a row."""


@dataclass(kw_only=True, slots=True)
class Preference(SidedSpec):
    """Pairs of a chosen and a rejected answer to the same prompt; both are the targets."""

    kind: ClassVar[str] = "pair"
    keep_equal: bool = False
    """Whether a pair of two equal answers is kept; false: it is a bad record."""

    def build(self) -> Form:
        from llmfactory.data.form.preference import PreferenceForm

        return PreferenceForm(self)


@dataclass(kw_only=True, slots=True)
class Prompts(SidedSpec):
    """Prompts that a model answers, each with what graders know of it: a right answer, tests. Nothing of them is learned as it is."""

    kind: ClassVar[str] = "prompt"
    chat: bool = True
    """The prompt is put to the model by its chat template, up to where its answer begins; false: a text that the model goes on with."""
    too_long: TooLong = TooLong.drop
    """What becomes of prompts that are longer than allowed."""

    def problems(self) -> Iterator[Problem]:
        yield from RecordSpec.problems(self)
        if self.too_long is TooLong.right:
            reason = "a prompt that is cut off on the right does not end where its answer begins"
            yield Problem("too_long", "right", reason, "too_long=left")
        if not self.chat and self.system is not None:
            yield Problem("system", self.system, "a text that is continued has no system message", "chat=true")

    def build(self) -> Form:
        from llmfactory.data.form.prompts import PromptsForm

        return PromptsForm(self)


@dataclass(kw_only=True, slots=True)
class Kto(SidedSpec):
    """Answers with a label, wanted or not (Ethayarajh et al. 2024)."""

    kind: ClassVar[str] = "judged"

    def build(self) -> Form:
        from llmfactory.data.form.kto import KtoForm

        return KtoForm(self)


@dataclass(kw_only=True, slots=True)
class Ranking(SidedSpec):
    """Several answers to a prompt, the best first."""

    kind: ClassVar[str] = "ranking"
    most: int = 8
    """Answers of a record at most, K: the best and the worst ones stay, others are left out."""

    def problems(self) -> Iterator[Problem]:
        yield from RecordSpec.problems(self)
        yield from at_least(self, 2, "most")

    def build(self) -> Form:
        from llmfactory.data.form.ranking import RankingForm

        return RankingForm(self)


@dataclass(kw_only=True, slots=True)
class Reward(SidedSpec):
    """Answers with a score, of the whole or of each step."""

    kind: ClassVar[str] = "scored"

    def build(self) -> Form:
        from llmfactory.data.form.reward import RewardForm

        return RewardForm(self)


SIDED: tuple[type[SidedSpec], ...] = (Preference, Kto, Ranking, Reward, Prompts)
"""Forms of records with judgements, or with nothing but a question."""
WORDS = {
    "pair": "compared in pairs",
    "judged": "labelled wanted or not",
    "ranking": "ranked",
    "scored": "scored",
    "prompt": "yet to be written",
}
"""What is known of the answers of each kind of records."""
