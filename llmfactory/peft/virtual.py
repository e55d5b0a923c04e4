"""Virtual tokens: places before each document of a batch for which there is no text.

They are ids beyond the vocabulary, so that everything else about them (position, document, who sees whom) is said as of any other
token, by the context. A virtual token belongs to its document: the text sees it, and nobody else does. Positions of the text move
on by their number. Where a model decodes with a state, they are put before the prompt, and later calls find them among the keys.

Legend: B rows, T tokens, S keys, P virtual tokens a document, N columns where S were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmfactory.core.branches import BranchMask
from llmfactory.core.context import (
    CausalMask,
    Context,
    DocumentMask,
    FullMask,
    Mask,
    PermutationMask,
    PrefixMask,
    SegmentMask,
    Source,
    StreamsMask,
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Where the columns of rows go when P come before each document. What neither is one of them nor was there is padding."""

    count: int
    """P."""
    place_BS: Tensor
    """New column of each old one."""
    origin_BN: Tensor
    """Old column of each new one, -1: there was none."""
    number_BN: Tensor
    """Which virtual token stands there, from 0; -1: none."""
    segments_BN: Tensor
    """Documents of all of them, 0 is padding."""

    def moved(self, x_BS: Tensor, virtual: Tensor | int = 0) -> Tensor:
        """The same numbers at the new columns; `virtual` at those of virtual tokens, 0 at padding."""
        kept_BN = x_BS.expand(len(self.origin_BN), -1).gather(1, self.origin_BN.clamp_min(0))
        return torch.where(self.number_BN >= 0, virtual, kept_BN.where(self.origin_BN >= 0, 0))

    def positions(self, positions: Tensor) -> Tensor:
        """[B, S] -> [B, N]; of several axes, [B, R, S], the first counts the tokens and the others stay."""
        if positions.dim() == 2:
            return self.moved(positions + self.count, self.number_BN)
        first, *others = positions.unbind(1)
        return torch.stack([self.moved(first + self.count, self.number_BN), *map(self.moved, others)], 1)


def later(positions: Tensor, count: int) -> Tensor:
    """Positions [B, T], or [B, R, T] of which the first axis counts the tokens, behind so many others."""
    if positions.dim() == 2:
        return positions + count
    first, *others = positions.unbind(1)
    return torch.stack([first + count, *others], 1)


def spread(segments_BS: Tensor, count: int) -> Spread:
    """`count` columns before the first one of each document of `segments_BS`, where 0 is padding."""
    before_BS = torch.zeros_like(segments_BS)
    before_BS[:, 1:] = segments_BS[:, :-1]
    starts_BS = (segments_BS > 0) & (segments_BS != before_BS)
    number_BS = starts_BS.cumsum(1)
    columns_S = torch.arange(segments_BS.shape[1], device=segments_BS.device)
    place_BS = columns_S + count * number_BS
    shape = len(segments_BS), segments_BS.shape[1] + count * int(number_BS[:, -1].max())
    origin_BN = place_BS.new_full(shape, -1).scatter(1, place_BS, columns_S.expand_as(place_BS))
    row_D, column_D = starts_BS.nonzero(as_tuple=True)
    virtual_P = torch.arange(count, device=segments_BS.device)
    column_DP = (place_BS[row_D, column_D] - count)[:, None] + virtual_P
    number_BN, segments_BN = place_BS.new_full(shape, -1), segments_BS.new_zeros(shape)
    number_BN[row_D[:, None], column_DP] = virtual_P
    segments_BN.scatter_(1, place_BS, segments_BS)
    segments_BN[row_D[:, None], column_DP] = segments_BS[row_D, column_D][:, None]
    return Spread(count, place_BS, origin_BN, number_BN, segments_BN)


def insert(tokens_BT: Tensor, context: Context, count: int, first_id: int) -> tuple[Tensor, Context, Tensor | None]:
    """Tokens and context with `count` virtual tokens, whose ids begin with `first_id`, before each document.

    Also the new columns [B, T] of the tokens; None: they are where they were, in a later call of a decoding.
    """
    n_keys = tokens_BT.shape[1] if context.key_positions is None else context.key_positions.shape[-1]
    keys = spread(_of_keys(context.mask, tokens_BT, n_keys), count)
    key_positions = None if context.key_positions is None else keys.positions(context.key_positions)
    if n_keys > tokens_BT.shape[1]:
        changed = context.with_(
            positions=later(context.positions, count), mask=_later(context.mask, keys), key_positions=key_positions
        )
        return tokens_BT, changed, None
    changed = context.with_(
        positions=keys.positions(context.positions),
        mask=_widened(context.mask, keys),
        key_positions=key_positions,
        segments=None if context.segments is None else keys.segments_BN,
        types=None if context.types is None else keys.moved(context.types),
    )
    return keys.moved(tokens_BT, first_id + keys.number_BN), changed, keys.place_BS


def insert_into_source(context: Context, count: int, first_id: int) -> Context:
    """The same for what an encoder reads; the decoder, whose context this is, sees its documents' virtual tokens."""
    source = context.source
    if source is not None:
        tokens_BN, inner, _ = insert(source.tokens, source.context, count, first_id)
        context = context.with_(source=Source(tokens_BN, inner, _seen_from_decoder(source.mask, count)))
    if context.memory_mask is not None:
        context = context.with_(memory_mask=_seen_from_decoder(context.memory_mask, count))
    return context


def _seen_from_decoder(mask: Mask, count: int) -> Mask:
    if isinstance(mask, SegmentMask):
        return SegmentMask(mask.segments_BT, spread(mask.segments_BS, count).segments_BN)
    if isinstance(mask, FullMask):
        return mask
    raise TypeError(f"virtual tokens cannot be put before the documents of a {type(mask).__name__}")


def _of_keys(mask: Mask, tokens_BT: Tensor, n_keys: int) -> Tensor:
    """[B, S], documents of the keys."""
    if isinstance(mask, (CausalMask, FullMask)):
        return torch.ones(len(tokens_BT), n_keys, dtype=torch.long, device=tokens_BT.device)
    if isinstance(mask, (DocumentMask, SegmentMask)):
        return mask.segments_BS
    if isinstance(mask, PrefixMask):
        return mask.causal.segments_BS
    if isinstance(mask, BranchMask):
        return mask.keys[0]
    if isinstance(mask, PermutationMask):
        return mask.segments.segments_BS
    if isinstance(mask, StreamsMask):
        return _of_keys(mask.content, tokens_BT, n_keys)
    raise TypeError(f"virtual tokens cannot be put before the documents of a {type(mask).__name__}")


def _widened(mask: Mask, keys: Spread) -> Mask:
    """Queries are all the columns, as keys are."""
    segments_BN = keys.segments_BN
    if isinstance(mask, CausalMask):
        return CausalMask(segments_BN.shape[1], segments_BN.device)
    if isinstance(mask, FullMask):
        return FullMask(segments_BN.shape[1], segments_BN.device)
    if isinstance(mask, DocumentMask):
        return DocumentMask(segments_BN)
    if isinstance(mask, SegmentMask):
        return SegmentMask(segments_BN)
    if isinstance(mask, PrefixMask):
        return PrefixMask(keys.moved(mask.prefix_BT, 1), segments_BN)
    if isinstance(mask, BranchMask):  # before what branches have in common
        return BranchMask(segments_BN, keys.moved(mask.queries[1]), keys.positions(mask.queries[2]))
    if isinstance(mask, PermutationMask):  # what is given comes first in the order
        return PermutationMask(keys.moved(mask.place_BT), segments_BN, mask.strict)
    assert isinstance(mask, StreamsMask)
    return StreamsMask(_widened(mask.content, keys), _widened(mask.query, keys), segments_BN.shape[1])


def _later(mask: Mask, keys: Spread) -> Mask:
    """Queries are the last tokens, which came after what the state holds."""
    segments_BN = keys.segments_BN
    if isinstance(mask, CausalMask):
        return CausalMask(segments_BN.shape[1], segments_BN.device, queries=mask.queries)
    if isinstance(mask, DocumentMask):
        columns_1N = torch.arange(segments_BN.shape[1], device=segments_BN.device)[None]
        place_BT = keys.place_BS[:, -mask.segments_BT.shape[1] :]
        return DocumentMask(mask.segments_BT, segments_BN, place_BT, columns_1N)
    raise TypeError(f"virtual tokens have no place in what a {type(mask).__name__} says of earlier calls")
