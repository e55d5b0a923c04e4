"""The interface of whole models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from llmfactory.core.context import BranchMask, CausalMask, Context, DocumentMask, Mask, PrefixMask
from llmfactory.model.head.part import Head
from llmfactory.model.part import Part
from llmfactory.model.spec import ModelSpec
from llmfactory.model.steps import HIDDEN, Pass, Step

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

COMPANIONS = ("generator.", "critic.")
"""Beginnings of the names of models that objectives train beside a model, as parts of it; using the model needs none."""
COMPANION = "generator."
"""Beginning of the names of a second model that an objective trains beside a model, as a part of it; using the model needs none."""


class Skeleton(Part):
    """tokens [B, T] -> hidden [B, T, D]; `head` makes logits of them.

    They are apart so that a loss may fuse the head, and generation may ask for the last position only. Values are undefined
    until `model/initialize.py` or a checkpoint has filled them.
    """

    spec: ModelSpec
    head: Head
    added: frozenset[str] = frozenset()
    """Names of parameters and buffers that are not the model's own: adapters, a companion. Weights to start from do not have them."""
    borrowed: frozenset[str] = frozenset()
    """Names of those whose values come from elsewhere and stay (a frozen base, a reference): checkpoints leave them out."""
    preceding: int = 0
    """Places before each text that no token of it takes (trained ones): positions and keys that are kept are more by so many."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that parts add to `Context.record`, each divided by its `term_tokens` over the whole step."""
        return tuple(dict.fromkeys(name for part in self.modules() if isinstance(part, Part) for name in part.own_terms))

    def term_tokens(self, batch: Batch) -> dict[str, float]:
        """By name, the number of tokens of a batch that each of `terms` is a sum over; padding does not count."""
        return dict.fromkeys(self.terms, float((batch["segments"] > 0).sum().item()))

    @abstractmethod
    def steps(self) -> list[Step]:
        """All of the forward pass, in order; the last one leaves the hidden vectors."""

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        going = Pass(tokens_BT, context)
        for step in self.steps():
            step.run(going)
        return going.carried[HIDDEN]

    def context(self, batch: Batch, isolated: bool = True) -> Context:
        """Positions and mask that a batch means to this graph: here, each token sees those before it, and its document's prefix.

        `isolated`: rows hold several documents or padding (`segments`), which attention must keep apart; without, a row is
        one text.
        """
        segments = batch["segments"] if isolated else None
        mask: Mask
        if segments is None:
            mask = CausalMask(batch["tokens"].shape[1], batch["tokens"].device)
        elif "branches" in batch:
            mask = BranchMask(segments, batch["branches"], batch["positions"])
        elif "prefix" in batch:
            mask = PrefixMask(batch["prefix"], segments)
        else:
            mask = DocumentMask(segments)
        return Context(positions=batch["positions"], mask=mask, segments=segments, types=batch.get("types"))

    def make_room(self, tensors: Mapping[str, Mapping[str, Any]]) -> None:
        """Give tensors whose size follows from data, not from the spec, that of a checkpoint (name -> `shape`, `dtype`)."""
        return

    @property
    def position_limit(self) -> int | None:
        """Number of positions that exist at all; None: every position has a meaning."""
        return None

    def chain(self) -> list[tuple[str, nn.Module]]:
        """The modules in forward order, by name, once for each use."""
        names = {module: name for name, module in self.named_modules()}
        used = [module for step in self.steps() for module in step.modules if not isinstance(module, nn.Dropout)]
        return [(names[module], module) for module in (*used, self.head)]

    @abstractmethod
    def train_flops_per_token(self, seq_len: int) -> float:
        """Floating point operations of forward and backward for one token in rows of `seq_len`; a multiply-add counts two.

        Matrix products only, the convention of model FLOPs utilization (Chowdhery et al. 2022, appendix B): the head's product
        counts, tied or not, table lookups do not; attention counts what its mask leaves; the backward is twice the forward;
        recomputation is not counted; of experts those count that a token visits.
        """


class Counted(Skeleton):
    """A model that is fitted by counting: one pass over the training rows, nothing is optimized."""

    @abstractmethod
    def count(self, batches: Iterable[Batch], isolated: bool) -> None:
        """Fit it to all rows of `batches`, each of which comes once; `isolated` is that of the rows."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Numbers that it keeps, as others have parameters."""
