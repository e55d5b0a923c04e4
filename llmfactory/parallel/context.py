"""Context parallelism: rows cut along their length over the processes of a group, all of which hold the same rows and weights.

Everything in a model that treats tokens one by one needs no change. Positions, documents and kinds of text are data and are cut
with the tokens. Attention alone looks at other tokens: it finds a `CutMask`, which brings its own way of doing so, one of

- ring: keys and values go round (`ring.py`);
- ulysses: two all-to-alls exchange heads for tokens, so that each process has whole rows of some of the heads and runs ordinary
  attention under the ordinary mask (Jacobs et al. 2023);
- gather: keys and values of all are gathered, each process runs ordinary attention of its queries under its part of the mask
  (Grattafiori et al. 2024, section 3.3.2).

Of n processes, process r holds blocks r and 2n - 1 - r of the 2n blocks of each row (Grattafiori et al. 2024,
section 3.3.2). Under a causal mask a query in block b sees b + 1/2 blocks of keys on average, so that every process
computes (r + 1/2) + (2n - 1 - r + 1/2) = 2n pairs of blocks, and in each step of the ring all compute alike. Contiguous pieces
would give the last process almost twice the mean. Without a causal mask any cut is balanced.

What a process sends for one attention, forward and backward, where q, k, v and the result are pieces of S bytes each (with fewer
key/value heads, k and v less):

| method | bytes | processes at most |
|---|---|---|
| ring | 2 (n - 1) S + (4 n - 2) S, while it computes | any number |
| ulysses | 8 (n - 1) / n S | as many as heads |
| gather | 4 (n - 1) S | any number; holds all keys and values of a layer |

Legend: B rows, T tokens of a whole row, n processes, H query heads, G key/value heads, D, E widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.batch import IGNORE, NARROW
from llmfactory.core.context import Context, CutMask, Mask, Source
from llmfactory.kernel.attention import attend
from llmfactory.parallel.collectives import Group, exchange, gather, gathered, total
from llmfactory.parallel.ring import Round, ring_attention
from llmfactory.parallel.spec import ContextMethod

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class Columns:
    """Which columns of rows of `length` stand on which of `size` processes. `streams`: so many rows one behind the other."""

    def __init__(self, length: int, size: int, streams: int = 1) -> None:
        if length % (2 * size):
            raise ValueError(f"rows of {length} tokens cannot be cut into 2 x {size} blocks")
        self.length, self.size, self.streams, self.block = length, size, streams, length // (2 * size)
        blocks = [[rank, 2 * size - 1 - rank] for rank in range(size)]
        self._blocks = [[2 * size * stream + block for stream in range(streams) for block in pair] for pair in blocks]

    def of(self, rank: int) -> list[slice]:
        """In the order in which the process holds them."""
        return [slice(block * self.block, (block + 1) * self.block) for block in self._blocks[rank]]

    def own(self, x: Tensor, dim: int, rank: int) -> Tensor:
        """A process's part of whole rows along `dim`."""
        return torch.cat([x.narrow(dim, part.start, self.block) for part in self.of(rank)], dim)

    def joined(self, x: Tensor, dim: int) -> Tensor:
        """Parts of all processes, in order of rank -> whole rows."""
        held = [block for blocks in self._blocks for block in blocks]
        pieces = torch.split(x, self.block, dim)
        return torch.cat([pieces[held.index(block)] for block in range(len(held))], dim)

    def dealt(self, x: Tensor, dim: int) -> Tensor:
        """Whole rows -> parts of all processes, in order of rank."""
        return torch.cat([self.own(x, dim, rank) for rank in range(self.size)], dim)


class RowPieces:
    """`core.context.Pieces` of a group."""

    def __init__(self, group: Group, columns: Columns) -> None:
        self.group, self.columns = group, columns

    @property
    def size(self) -> int:
        return self.group.size()

    def total(self, x: Tensor) -> Tensor:
        return total(x, self.group)

    def whole(self, x_BT: Tensor) -> Tensor:
        return self.columns.joined(gathered(x_BT, 1, self.group), 1)

    def own(self, x_BT: Tensor) -> Tensor:
        return self.columns.own(x_BT, 1, self.group.rank())


class PieceMask(CutMask):
    """A mask over whole rows, and which of its columns are this process's."""

    def __init__(self, whole: Mask, group: Group, queries: Columns, keys: Columns) -> None:
        super().__init__()
        self.whole, self.group, self.queries, self.keys = whole, group, queries, keys
        self.streams = whole.streams
        self.columns = queries.of(group.rank())

    def seen(self) -> Tensor | None:
        """[B or 1, 1, T / n, S]."""
        seen = self.whole.dense()
        return None if seen is None else self.queries.own(seen, 2, self.group.rank())

    def order(self) -> tuple[Tensor, Tensor]:
        queries, keys = self.whole.order()
        return self.queries.own(queries, 1, self.group.rank()), keys


class GatherMask(PieceMask):
    """Keys and values of all processes are gathered; each block of queries is given those that it may see."""

    def attend(
        self,
        q_BHTD: Tensor,
        k_BGTD: Tensor,
        v_BGTE: Tensor,
        bias: Tensor | None,
        *,
        scale: float | None,
        window: int | None,
        softcap: float | None,
        dropout: float,
    ) -> Tensor:
        k_BGSD, v_BGSE = (self.keys.joined(gather(x, 2, self.group), 2) for x in (k_BGTD, v_BGTE))
        found = []
        for number, columns in enumerate(self.columns):
            here = slice(number * self.queries.block, (number + 1) * self.queries.block)
            reach = self.whole.reach(columns, window)
            seen = slice(reach.start, min(self.keys.length, math.inf if reach.stop is None else reach.stop))
            y_BHTE = attend(
                q_BHTD[:, :, here],
                k_BGSD[:, :, seen],
                v_BGSE[:, :, seen],
                self.whole.tile(columns, seen),
                None if bias is None else bias[:, :, here, seen],
                scale=scale,
                window=window,
                softcap=softcap,
                dropout=dropout,
            )
            found.append(y_BHTE)
        return torch.cat(found, 2)


class UlyssesMask(PieceMask):
    """Heads are dealt out instead of tokens. Fewer key/value heads than processes are repeated first."""

    def attend(
        self,
        q_BHTD: Tensor,
        k_BGTD: Tensor,
        v_BGTE: Tensor,
        bias: Tensor | None,
        *,
        scale: float | None,
        window: int | None,
        softcap: float | None,
        dropout: float,
    ) -> Tensor:
        repeats = math.lcm(k_BGTD.shape[1], self.group.size()) // k_BGTD.shape[1]
        q = self._heads(q_BHTD, self.queries)
        k, v = (self._heads(x.repeat_interleave(repeats, 1), self.keys) for x in (k_BGTD, v_BGTE))
        bias = None if bias is None else self._heads(bias, self.queries)
        y = attend(q, k, v, self.whole, bias, scale=scale, window=window, softcap=softcap, dropout=dropout)
        return exchange(self.queries.dealt(y, 2), 2, 1, self.group)

    def _heads(self, x_BHTD: Tensor, columns: Columns) -> Tensor:
        """[B, H, T / n, D] -> [B, H / n, T, D]."""
        return columns.joined(exchange(x_BHTD, 1, 2, self.group), 2)


class RingMask(PieceMask):
    """Keys and values go round."""

    def attend(
        self,
        q_BHTD: Tensor,
        k_BGTD: Tensor,
        v_BGTE: Tensor,
        bias: Tensor | None,
        *,
        scale: float | None,
        window: int | None,
        softcap: float | None,
        dropout: float,
    ) -> Tensor:
        if dropout:
            raise ValueError("the backward pass round the ring does not draw the forward's dropped probabilities again")
        keys = [self.keys.of(rank) for rank in range(self.keys.size)]
        factor = q_BHTD.shape[-1] ** -0.5 if scale is None else scale
        round = Round(self.whole, self.columns, keys, self.group, factor, window, softcap)
        return ring_attention(q_BHTD, k_BGTD, v_BGTE, bias, round)


MASKS: dict[ContextMethod, Callable[[Mask, Group, Columns, Columns], PieceMask]] = {
    ContextMethod.ring: RingMask,
    ContextMethod.ulysses: UlyssesMask,
    ContextMethod.gather: GatherMask,
}


LABELS = ("labels", "other_labels", "near", "noise")
"""Fields of a batch in which -100 is nothing."""
REWARDS = "rewards"
"""The field in which NaN is nothing."""
WHOLE = NARROW | {"images"}
"""Fields that do not run along the row: every process sees the pictures, and takes up what belongs to its tokens."""


def padded(batch: Batch, multiple: int) -> Batch:
    """Rows of a length that can be cut: their own, or longer by padding, which has no label and is no document.

    Before the context is made, which must keep documents apart then. Lengths that follow from a corruption need it; those that
    are given are checked while composing.
    """
    return {name: _padded(name, field, multiple) for name, field in batch.items()}


def _padded(name: str, field: Tensor, multiple: int) -> Tensor:
    if name in WHOLE:
        return field
    dim = _length_dim(name, field)
    missing = -field.shape[dim] % multiple
    behind = [0] * (2 * (field.dim() - 1 - dim)) + [0, missing]
    nothing = IGNORE if name in LABELS else math.nan if name == REWARDS else 0
    return F.pad(field, behind, value=nothing) if missing else field


class ContextCut:
    """Cuts a batch and its context along the rows: this process's columns, and masks that know the others'."""

    def __init__(self, group: Group, method: ContextMethod) -> None:
        self.group, self.method = group, method

    def __call__(self, batch: Batch, context: Context) -> tuple[Batch, Context]:
        tokens = self._columns(batch["tokens"].shape[1])
        source = self._columns(batch["source"].shape[1]) if "source" in batch else tokens
        cut = {name: self._own(name, field, source if name.startswith("source") else tokens) for name, field in batch.items()}
        return cut, self._context(context, tokens, source)

    def _columns(self, length: int, streams: int = 1) -> Columns:
        return Columns(length, self.group.size(), streams)

    def _own(self, name: str, field: Tensor, columns: Columns) -> Tensor:
        if name in WHOLE:
            return field
        return columns.own(field, _length_dim(name, field), self.group.rank())

    def _context(self, context: Context, columns: Columns, source: Columns) -> Context:
        streams = self._columns(columns.length, context.mask.streams)
        return context.with_(
            positions=self._own("positions", context.positions, columns),
            key_positions=context.positions,
            mask=MASKS[self.method](context.mask, self.group, streams, columns),
            segments=None if context.segments is None else self._own("segments", context.segments, columns),
            types=None if context.types is None else self._own("types", context.types, columns),
            source=None if context.source is None else self._source(context.source, columns, source),
            pieces=RowPieces(self.group, streams),
        )

    def _source(self, given: Source, tokens: Columns, source: Columns) -> Source:
        inner = self._context(given.context, source, source)
        return Source(
            self._own("source", given.tokens, source), inner, MASKS[self.method](given.mask, self.group, tokens, source)
        )


def _length_dim(name: str, field: Tensor) -> int:
    """The dimension of a batch's field that runs along the row: [B, T, ...], but positions [B, R, T]."""
    return field.dim() - 1 if name.endswith("positions") else 1
