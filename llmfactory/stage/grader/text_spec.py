"""Catalogue of graders that look at what an answer says, or at how long it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.core.spec import MISSING, at_least
from llmfactory.stage.grader.base_spec import GraderSpec

if TYPE_CHECKING:
    from llmfactory.stage.grader.grader import Grader, Setting


class Take(Enum):
    """Which part of an answer is compared."""

    whole = "all of it"
    last_line = "its last line that is not empty"
    marker = "what stands behind the last `mark`, to the end of the line"
    boxed = r"what stands in the last \boxed{...}"
    pattern = "what the regular expression `mark` finds last: its first group, or everything where it has none"


def compiles(spec: GraderSpec, name: str) -> Iterator[Problem]:
    """The field is a regular expression, or None."""
    pattern = getattr(spec, name)
    if pattern is None or pattern == MISSING:
        return
    try:
        re.compile(pattern)
    except re.error as error:
        yield Problem(name, pattern, f"is no regular expression: {error}")


@dataclass(kw_only=True, slots=True)
class ComparingSpec(GraderSpec):
    """Base of the graders that compare an answer with the right one."""

    passes: ClassVar[bool] = True
    field: str = "answer"
    """The field of the prompt's record with the right answer, or with a list of right ones."""
    take: Take = Take.whole
    """Which part of the answer is compared; one that has no such part is wrong."""
    mark: str | None = None
    """The text or the regular expression that `take` speaks of."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        if self.take in (Take.marker, Take.pattern):
            if not self.mark:
                example = "'####'" if self.take is Take.marker else r"'(\d+)'"
                yield Problem("mark", self.mark, f"take={self.take.name} is told by it what to look for", f"mark={example}")
            elif self.take is Take.pattern:
                yield from compiles(self, "mark")
        elif self.mark is not None:
            yield Problem("mark", self.mark, f"take={self.take.name} looks for no mark", "take=marker")

    def needs(self) -> tuple[str, ...]:
        return (self.field,)


@dataclass(kw_only=True, slots=True)
class ExactMatch(ComparingSpec):
    """1 for an answer that says the same as the right one, else 0; blanks at the ends and how wide blanks are never matter."""

    ignore_case: bool = False
    """Capitals are as good as small letters."""
    ignore_punctuation: bool = False
    """Marks like , and ! do not matter."""
    ignore_articles: bool = False
    """The words a, an and the do not matter."""

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.exact_match import ExactMatchGrader

        return ExactMatchGrader(self)


@dataclass(kw_only=True, slots=True)
class Number(ComparingSpec):
    """1 for an answer whose number is the right one, else 0: the last number of what is taken, as in 1,234.5, 3/4, \\frac{3}{4}, 50%."""

    tolerance: float = 1e-6
    """How far off it may be, as a share of the right number (of 1, where that is smaller)."""

    def problems(self) -> Iterator[Problem]:
        yield from ComparingSpec.problems(self)
        yield from at_least(self, 0.0, "tolerance")

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.number import NumberGrader

        return NumberGrader(self)


@dataclass(kw_only=True, slots=True)
class Regex(GraderSpec):
    """1 for an answer in which a regular expression is found, else 0."""

    pattern: str
    """The regular expression."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        yield from compiles(self, "pattern")

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.regex import RegexGrader

        return RegexGrader(self)


@dataclass(kw_only=True, slots=True)
class Contains(GraderSpec):
    """The share of texts that an answer should contain and does, and of those that it should not and does not."""

    texts: list[str] = field(default_factory=list)
    """What should stand in it."""
    without: list[str] = field(default_factory=list)
    """What should not."""
    ignore_case: bool = False
    """Capitals are as good as small letters."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        if not self.texts and not self.without:
            yield Problem("texts", [], "names nothing to look for, nor does `without`", "texts=[because]")
        for name in ("texts", "without"):
            if "" in getattr(self, name):
                yield Problem(name, getattr(self, name), "an empty text stands everywhere", f"{name}=[because]")

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.contains import ContainsGrader

        return ContainsGrader(self)


@dataclass(kw_only=True, slots=True)
class Format(GraderSpec):
    """1 for an answer that has a form as a whole, else 0: given tags, each once and in their order, or a regular expression."""

    tags: list[str] = field(default_factory=lambda: ["think", "answer"])
    """<think>...</think> <answer>...</answer>, with blanks at most around them; empty: `pattern` says the form."""
    pattern: str | None = None
    """A regular expression that fits all of the answer, blanks at the ends aside; a dot is also a line's end. None: `tags` say it."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        yield from compiles(self, "pattern")
        if bool(self.tags) == (self.pattern is not None):
            reason = "the form is said either by tags or by a regular expression"
            repair = "tags=[]" if self.tags else "tags=[think,answer]"
            yield Problem("tags", self.tags, reason, repair)
        if len(set(self.tags)) < len(self.tags):
            once = ",".join(dict.fromkeys(self.tags))
            yield Problem("tags", self.tags, "each tag stands in the answer once", f"tags=[{once}]")

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.format import FormatGrader

        return FormatGrader(self)


@dataclass(kw_only=True, slots=True)
class Length(GraderSpec):
    """0 for an answer of up to `most - soft` tokens, then less and less down to -1 at `most` tokens, and -1 beyond (Yu et al. 2025,
    DAPO, equation 13)."""

    most: int | None = None
    """Tokens of the longest answer, L_max; None: those that an answer has at most, stage.max_tokens."""
    soft: int | None = None
    """Tokens over which the grade falls, L_cache; None: a fifth of `most`."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        yield from at_least(self, 2, "most")
        yield from at_least(self, 1, "soft")
        if self.most is not None and self.soft is not None and self.soft > self.most:
            yield Problem("soft", self.soft, f"is part of most={self.most}", f"soft={max(1, self.most // 5)}")

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.length import LengthGrader

        return LengthGrader(self, setting.max_tokens)


@dataclass(kw_only=True, slots=True)
class TargetLength(GraderSpec):
    """How near an answer comes to a length: -|tokens - target| / target (Aggarwal and Welleck 2025, L1, equation 1), -1 at least."""

    target: int = 100
    """Tokens that it should have."""

    def problems(self) -> Iterator[Problem]:
        yield from GraderSpec.problems(self)
        yield from at_least(self, 1, "target")

    def build(self, setting: Setting) -> Grader:
        from llmfactory.stage.grader.target_length import TargetLengthGrader

        return TargetLengthGrader(self)
