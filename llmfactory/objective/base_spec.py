"""The base of all training objectives' specs, for the pages of the catalogue that stand beside spec.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.spec import Spec
from llmfactory.core.special import Special

if TYPE_CHECKING:
    from llmfactory.objective.objective import Objective


@dataclass(kw_only=True, slots=True)
class ObjectiveSpec(Spec):
    """Base of the objectives."""

    graphs: ClassVar[tuple[str, ...]] = ("decoder", "recurrent")
    """Kinds of models (`ModelSpec.graph`) that it trains."""
    answers: ClassVar[str] = "tokens"
    """What the model's head must say (`HeadSpec.answers`)."""
    labelled: ClassVar[bool] = False
    """Whether it learns from labelled examples (data=examples) of the task that `answers` names; otherwise from running text."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of records (`RecordSpec.kind`) with several answers or judgements that it learns from; none: text and conversations."""

    def specials(self) -> tuple[Special, ...]:
        """Tokens that it needs besides those of the text. Where the tokenizer lacks one it takes one of the highest ids of the
        model's vocabulary, the first the highest."""
        return ()

    def build(self) -> Objective:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of stage/objective")
