"""The interface of objectives: what is minimized, as a pure function of a model's outputs and a batch.

An objective never sees a process, a device or a trainer. It returns sums, and beside each sum the number that it must be
divided by, which is a function of the batch alone. Whoever trains adds up the denominators of the whole optimizer step
(all micro-batches, all processes) before the first backward pass, and back-propagates sum / total. So the loss is the same
however the step's rows are cut up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from llmfactory.core.context import Pieces, Reading

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.core.context import Context
    from llmfactory.data.corruption.corruption import Corruption
    from llmfactory.data.corruption.vocabulary import Vocabulary
    from llmfactory.data.pack.rows import Rows
    from llmfactory.model.skeleton import Skeleton

Terms = dict[str, tuple[Tensor, Tensor]]
"""Name of each term of the loss -> (sum, denominator), scalars; the loss is the sum over terms of sum / denominator. Measures that
are watched beside the loss (`Objective.watched`) are given in the same way."""


class Head(Protocol):
    """The last linear map of a model, kept apart so that a loss may fuse it."""

    @property
    def weight(self) -> Tensor:
        """[V, D]."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """[V], or None."""
        ...

    @property
    def softcap(self) -> float | None:
        """Logits z become softcap * tanh(z / softcap); None: they stay."""
        ...

    def features(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D], what the matrix is multiplied with."""
        ...

    def pool(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None, documents: int = 1) -> Tensor:
        """[B, T, D] -> the vectors that the head speaks about: all of them, or one for each document of a row."""
        ...

    def cross_entropy(
        self, hidden: Tensor, labels: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0, z: float = 0.0
    ) -> Tensor:
        """Sum over labels of weight x (smoothed cross-entropy + z log^2 of the softmax's normalizer); ignored labels count nothing."""
        ...

    def log_probs(self, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        """log p(label) under the softmax of the logits / temperature, in the shape of the labels; 0 where they are ignored."""
        ...

    def log_probs_and_entropy(self, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`log_probs`, and the entropy of each label's distribution."""
        ...

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of vectors [..., D]."""
        ...


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model computed from a batch."""

    hidden: Tensor
    """[B, T, D], final norm applied."""
    head: Head
    pieces: Pieces | None = field(default=None, kw_only=True)
    """How rows are cut along their length, of which these are a process's piece; None: rows are whole."""


class Objective(ABC):
    """What training minimizes."""

    terms: tuple[str, ...]
    """Names of the loss's terms."""

    watched: tuple[str, ...] = ()
    """Names of measures that `__call__` returns beside the terms: sums and denominators too, reported and not minimized."""
    unit: str = "nats per token"
    """What the loss is measured in."""
    sparse: ClassVar[bool] = False
    """Only places with a label go through the head."""
    surveys: ClassVar[bool] = False
    """Its loss depends on numbers of the whole optimizer step (`survey`)."""
    likelihood: bool = False
    """Whether the loss of the plain measure is that of each token of the text, once, given those before it: only then perplexity
    and bits per byte of the text follow from it."""

    continues: bool = False
    """Whether a model that was trained on it goes on with a text, as a language model does."""
    reading: Reading = Reading.forward
    """How it reads the text then."""

    def prompt(self, tokens: list[int], vocabulary: Vocabulary) -> tuple[list[int], int]:
        """What to give a model for a text that it is to continue, and the token with which it ends what it writes."""
        return tokens, vocabulary.end_id

    def rows(self, rows: Rows) -> Rows:
        """The rows with what it needs besides; most need nothing."""
        return rows

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption | None:
        """How the rows that it wants, `seq_len` tokens wide in the model, are made of plain ones; None: they are plain."""
        return None

    def equip(self, model: Skeleton) -> None:
        """Give the model what training needs beside it (a generator), as a part of it; most need nothing."""
        return

    def begin(self, model: Skeleton) -> None:
        """Give what `equip` has added its first values, where they depend on the model's own, which it has by now."""
        return

    def surveyed(self, batch: Batch) -> Batch:
        """What `survey` looks at: of a micro-batch, these rows."""
        return batch

    def survey(self, model: Skeleton, batch: Batch, context: Context) -> Tensor:
        """Sums [n] over the rows of a micro-batch. Added up over the whole optimizer step before the first backward pass, over all
        held-out rows before they are measured, they come with every row of the batch (`survey`)."""
        raise TypeError(f"{type(self).__name__} surveys nothing")

    def outputs(self, model: Skeleton, batch: Batch, context: Context) -> Outputs:
        """Run the model."""
        return Outputs(model(batch["tokens"], context), model.head, pieces=context.pieces)

    @abstractmethod
    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        """The loss's terms over the rows of this batch, and what is watched beside them."""

    def plain(self) -> Objective:
        """The same as a measure, for held-out rows: without what is there to help training only. Itself where nothing is."""
        return self

    @abstractmethod
    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        """The denominators that `__call__` returns for this batch, without a model."""
