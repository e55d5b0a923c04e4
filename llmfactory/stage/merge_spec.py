"""Catalogue of stages that make one model of several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from llmfactory.core.errors import Problem
from llmfactory.stage.base_spec import StageSpec
from llmfactory.stage.method.spec import MethodSpec

if TYPE_CHECKING:
    from llmfactory.stage.job import StageJob

INIT = "init"
"""What the model of `init` is called among the others."""


@dataclass(kw_only=True, slots=True)
class Merge(StageSpec):
    """Put the weights of several models with the same architecture and vocabulary together with those of `init`, without training."""

    keeps: ClassVar[bool] = True
    method: MethodSpec
    """How: an average, or what each model has learned on top of `init`."""
    models: dict[str, str] = field(default_factory=dict)
    """The others by name: runs, checkpoints, published models. 'stage.models={math: outputs/math, code: outputs/code}'"""
    weights: dict[str, float] = field(default_factory=dict)
    """How much each counts, by name; one that is not named has weight 1. The model of `init` is called init."""
    tokenizer: str | None = None
    """Whose tokenizer and chat template the new model has, by name; None: those of the first that knows a chat template, else of init."""

    def problems(self) -> Iterator[Problem]:
        if not self.models:
            yield Problem("models", {}, "names no model to put together with that of init", "models={other:outputs/other}")
        if INIT in self.models:
            yield Problem("models", self.models, "init is the name of the model of init=, give another one", None)
        known = {INIT, *self.models}
        if unknown := sorted(set(self.weights) - known):
            reason = f"{', '.join(unknown)} is no model's name: there are {', '.join(sorted(known))}"
            yield Problem("weights", self.weights, reason, "weights={}")
        if self.tokenizer is not None and self.tokenizer not in known:
            reason = f"is no model's name: there are {', '.join(sorted(known))}"
            yield Problem("tokenizer", self.tokenizer, reason, "tokenizer=null")
        yield from self.method.against(sorted(self.models), self.weights)

    def build(self) -> StageJob:
        from llmfactory.stage.merge import MergeJob

        return MergeJob(self)
