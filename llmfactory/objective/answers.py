"""How likely a model finds the answers of a row: what objectives share that compare answers by their log-probabilities.

A row is one record, its K answers are its documents 1..K (`data/form/record_rows.py`), or branches 1..K behind a prompt that they
share (`data/form/shared_prompt.py`). The log-probability of an answer is the sum over its labels,

    log p(y | x) = sum_t log p(y_t | x, y_<t).

Where rows are cut along their length, each process finds its piece of the sum; together they have all of it, and each gives its
share of what follows from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.core.context import Pieces
from llmfactory.objective.objective import Objective, Outputs, Terms
from llmfactory.objective.preference_spec import Reference
from llmfactory.objective.reference import add_reference, begin_reference
from llmfactory.peft.active import without_adapters

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.core.context import Context
    from llmfactory.model.skeleton import Skeleton


@dataclass(frozen=True, slots=True)
class Compared(Outputs):
    """With what the reference says."""

    reference_BK: Tensor
    """Log-probabilities of the row's answers under it."""


def log_probs(outputs: Outputs, batch: Batch, answers: int) -> Tensor:
    """[B, K], in float32 at least; 0 where a row has no such answer."""
    found_BT = outputs.head.log_probs(outputs.hidden, batch["labels"])
    return _summed(found_BT, batch, answers, outputs.pieces)


def tokens(batch: Batch, answers: int, pieces: Pieces | None = None) -> Tensor:
    """[B, K], labels of each answer."""
    return _summed((batch["labels"] != IGNORE).double(), batch, answers, pieces)


def _summed(values_BT: Tensor, batch: Batch, answers: int, pieces: Pieces | None) -> Tensor:
    numbers_BT = batch.get("branches", batch["segments"])
    kept_BT = (batch["labels"] != IGNORE) & (numbers_BT > 0)
    sums_BK = values_BT.new_zeros(values_BT.shape[0], answers)
    sums_BK = sums_BK.scatter_add(1, (numbers_BT - 1).clamp(0, answers - 1), values_BT * kept_BT)
    return sums_BK if pieces is None else pieces.total(sums_BK)


def share(outputs: Outputs) -> float:
    """Of what all processes that hold pieces of the same rows compute alike, what counts here."""
    return 1.0 if outputs.pieces is None else 1.0 / outputs.pieces.size


@contextmanager
def still(model: Skeleton) -> Iterator[None]:
    """Within, nothing is dropped."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class AnswersObjective(Objective):
    """Base of the objectives that look at log-probabilities of answers, with a reference or without."""

    sparse = continues = True
    unit = "nats"

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def equip(self, model: Skeleton) -> None:
        """`model.reference`, a frozen copy, where that is what answers are compared with."""
        if self.reference is Reference.copy:
            add_reference(model)

    def begin(self, model: Skeleton) -> None:
        """The copy's weights are those that the model starts with; both lie over processes alike."""
        if self.reference is Reference.copy:
            begin_reference(model)

    def outputs(self, model: Skeleton, batch: Batch, context: Context) -> Outputs:
        known = None
        if self.reference in (Reference.base, Reference.copy):
            known = self.reference_log_probs(model, batch, context)
        outputs = Outputs(model(batch["tokens"], context), model.head, pieces=context.pieces)
        return outputs if known is None else Compared(outputs.hidden, outputs.head, known, pieces=outputs.pieces)

    @torch.no_grad()
    def reference_log_probs(self, model: Skeleton, batch: Batch, context: Context) -> Tensor:
        """[B, K] by the reference that is within the model, which drops nothing in training either."""
        other = cast("Skeleton", model.reference) if self.reference is Reference.copy else model
        with still(other), nullcontext() if other is not model else without_adapters(model):
            hidden = other(batch["tokens"], context.with_(record=None))
            return log_probs(Outputs(hidden, other.head, pieces=context.pieces), batch, self.answers(batch))

    def compared_with(self, outputs: Outputs, batch: Batch) -> Tensor | None:
        """[B, K], what the reference says; None: there is none."""
        if isinstance(outputs, Compared):
            return outputs.reference_BK
        return batch["reference_logps"] if self.reference is Reference.precomputed else None

    def asked(self, batch: Batch) -> list[tuple[Batch, int]]:
        """Rows of which a reference is asked in turn, and how many answers they have: all columns of `reference_logps`."""
        return [(batch, self.answers(batch))]

    def answers(self, batch: Batch) -> int:
        """Answers of a row at most, K."""
        return 2


class Asked(Objective):
    """Log-probabilities of the answers of each row, [B, K], instead of a sum: to be written down, not minimized."""

    terms = ("answers",)

    def __init__(self, answers: int) -> None:
        self.answers = answers

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        return {"answers": (log_probs(outputs, batch, self.answers) * share(outputs), self.denominators(batch)["answers"])}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return {"answers": torch.ones((), device=batch["labels"].device)}
