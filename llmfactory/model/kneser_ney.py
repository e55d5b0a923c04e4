"""An n-gram model by interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998, section 3).

    p(w | h) = (c(h w) - D(c(h w))) / c(h) + gamma(h) p(w | h without its oldest token)
    gamma(h) = (D_1 N_1(h) + D_2 N_2(h) + D_3 N_3+(h)) / c(h);   c(h) = sum_w c(h w)

N_i(h) is the number of tokens that were counted i times behind h. Below the empty history stands the uniform distribution. A
history that was never seen gives what the shorter one gives. Each order has its three discounts:
Y = n_1 / (n_1 + 2 n_2),  D_i = i - (i + 1) Y n_{i+1} / n_i,  n_i the number of its grams with count i.

The "hidden vectors" are the histories themselves, [..., n - 1] token ids, -1 where there is none. All that the model keeps are
whole numbers, so number formats do not matter; probabilities are float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from llmfactory.core.batch import IGNORE
from llmfactory.core.sharding import Parameter
from llmfactory.model.head.part import Head
from llmfactory.model.history import history
from llmfactory.model.ngram_counts import Table, count
from llmfactory.model.part import Part
from llmfactory.model.skeleton import Counted
from llmfactory.model.spec import KneserNey
from llmfactory.model.steps import HIDDEN, Pass, Step

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

USUAL = (0.5, 1.0, 1.5)
"""Discounts where a text is too small to tell them: where one of n_1 to n_4 is 0, or a discount would not lie in [0, i]."""


class Order(Part):
    """The grams with a context of one length, as `ngram_counts.Table` has them."""

    contexts: Tensor
    totals: Tensor
    kinds: Tensor
    grams: Tensor
    counts: Tensor
    counts_of_counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("contexts", "totals", "grams", "counts"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))
        self.register_buffer("kinds", torch.zeros(0, 3, dtype=torch.int64))
        self.register_buffer("counts_of_counts", torch.zeros(4, dtype=torch.int64))

    def declare(self) -> dict[str, Parameter]:
        return {}

    def take(self, table: Table) -> None:
        for name in ("contexts", "totals", "kinds", "grams", "counts", "counts_of_counts"):
            setattr(self, name, torch.from_numpy(getattr(table, name)).to(self.counts.device))

    def discounts(self) -> Tensor:
        """[4]: of a count of 0, 1, 2, and 3 or more."""
        n = self.counts_of_counts.double()
        found = torch.tensor(USUAL, dtype=torch.float64, device=n.device)
        sizes = torch.arange(1, 4, device=n.device)
        if (n > 0).all():
            estimated = sizes - (sizes + 1) * (n[0] / (n[0] + 2 * n[1])) * n[1:] / n[:3]
            if ((estimated >= 0) & (estimated <= sizes)).all():
                found = estimated
        return torch.cat([found.new_zeros(1), found])

    def find(self, keys: Tensor, among: Tensor) -> Tensor:
        """Place of each key, -1 where there is none."""
        if not len(among):
            return torch.full_like(keys, -1)
        place = torch.searchsorted(among, keys).clamp_max(len(among) - 1)
        return place.where(among[place] == keys, -1)

    def left(self, node_N: Tensor) -> Tensor:
        """gamma: what the context leaves to shorter ones; all of it where it was not seen."""
        lent = (self.kinds[node_N] * self.discounts()[1:]).sum(-1) / self.totals[node_N]
        return lent.where(node_N >= 0, 1.0)


class KneserNeyHead(Head):
    """Histories [..., n - 1] -> logits [..., V], which are the logarithms of probabilities."""

    bias = None

    def __init__(self, spec: KneserNey) -> None:
        super().__init__()
        self.vocab_size = spec.vocab_size
        self.orders = nn.ModuleList(Order() for _ in range(spec.order))
        self.register_buffer("weight", torch.zeros(spec.vocab_size, 0), persistent=False)  # no vectors, but a row a token

    def declare(self) -> dict[str, Parameter]:
        return {}

    def forward(self, hidden: Tensor) -> Tensor:
        histories_NM = hidden.flatten(0, -2) if hidden.dim() > 1 else hidden[None]
        N, V = len(histories_NM), self.vocab_size
        p_NV = torch.full((N, V), 1 / V, dtype=torch.float64, device=hidden.device)
        for order, node_N in self._contexts(histories_NM):
            p_NV = order.left(node_N)[:, None] * p_NV
            seen = (node_N >= 0).nonzero()[:, 0]
            node = node_N[seen]
            first = torch.searchsorted(order.grams, node * V)
            size = torch.searchsorted(order.grams, (node + 1) * V) - first
            row = seen.repeat_interleave(size)
            start = (first - (size.cumsum(0) - size)).repeat_interleave(size)
            place = start + torch.ones_like(start).cumsum(0) - 1
            counts = order.counts[place]
            share = (counts - order.discounts()[counts.clamp_max(3)]) / order.totals[node].repeat_interleave(size)
            p_NV.index_put_((row, order.grams[place] % V), share, accumulate=True)
        return p_NV.log().unflatten(0, hidden.shape[:-1])  # type: ignore[no-untyped-call, no-any-return]

    def cross_entropy(
        self, hidden: Tensor, labels: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0, z: float = 0.0
    ) -> Tensor:
        """By looking up the labels alone. Nothing is trained by it, so there is no smoothing of labels, and no normalizer to hold."""
        labels_N = labels.flatten()
        kept_N = labels_N != IGNORE
        nll_N = -self.probabilities(hidden.flatten(0, -2)[kept_N], labels_N[kept_N]).log()
        return nll_N.sum() if weights is None else (nll_N * weights.flatten()[kept_N]).sum()

    def probabilities(self, histories_NM: Tensor, labels_N: Tensor) -> Tensor:
        """p(label | history), [N], float64."""
        p_N = torch.full(labels_N.shape, 1 / self.vocab_size, dtype=torch.float64, device=labels_N.device)
        for order, node_N in self._contexts(histories_NM):
            place_N = order.find(node_N * self.vocab_size + labels_N, order.grams).where(node_N >= 0, -1)
            counts_N = order.counts[place_N]
            share_N = (counts_N - order.discounts()[counts_N.clamp_max(3)]) / order.totals[node_N]
            p_N = share_N.where(place_N >= 0, 0.0) + order.left(node_N) * p_N
        return p_N

    def _contexts(self, histories_NM: Tensor) -> Iterable[tuple[Order, Tensor]]:
        """Each order, shortest context first, and the node of each history in it, -1 where there is none."""
        node_N = torch.zeros(len(histories_NM), dtype=torch.int64, device=histories_NM.device)
        for length, order in enumerate(self.orders):
            assert isinstance(order, Order)
            if not len(order.grams):
                return
            if length:
                older_N = histories_NM[:, -length]
                found_N = order.find(node_N * self.vocab_size + older_N, order.contexts)
                node_N = found_N.where((node_N >= 0) & (older_N >= 0), -1)
            yield order, node_N


class KneserNeyModel(Counted):
    """tokens [B, T] -> histories [B, T, n - 1]."""

    def __init__(self, spec: KneserNey) -> None:
        super().__init__()
        self.spec: KneserNey = spec
        self.head = KneserNeyHead(spec)

    def declare(self) -> dict[str, Parameter]:
        return {}

    def steps(self) -> list[Step]:
        return [Step((), self._histories)]

    def _histories(self, going: Pass) -> None:
        none_BT0 = going.tokens[..., None][..., :0]
        length = self.spec.order - 1
        going.carried[HIDDEN] = history(going.tokens, going.context, length, nothing=-1) if length else none_BT0

    def count(self, batches: Iterable[Batch], isolated: bool) -> None:
        histories, labels = [], []
        for batch in batches:
            kept = batch["labels"] != IGNORE
            histories.append(self(batch["tokens"], self.context(batch, isolated))[kept].cpu().numpy())
            labels.append(batch["labels"][kept].cpu().numpy())
        tables = count(np.concatenate(histories), np.concatenate(labels), self.spec.vocab_size)
        for order, table in zip(self.orders, tables, strict=True):
            order.take(table)

    def make_room(self, tensors: Mapping[str, Mapping[str, Any]]) -> None:
        for name, buffer in dict(self.named_buffers()).items():
            if name in tensors:
                owner, _, last = name.rpartition(".")
                setattr(self.get_submodule(owner), last, buffer.new_zeros(tensors[name]["shape"]))

    @property
    def orders(self) -> list[Order]:
        return [order for order in self.head.modules() if isinstance(order, Order)]

    @property
    def size(self) -> int:
        return sum(len(order.grams) for order in self.orders)

    def train_flops_per_token(self, seq_len: int) -> float:
        return 0.0
