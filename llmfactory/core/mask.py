"""Who attends to whom.

A mask is built from a few numbers a token (document, place, prefix), never from pairs, so that a part of it can be cut out and
the rest need not exist: rows of which a process holds a piece only, blocks that no kernel is to touch.

Shapes: B rows, T queries, S keys (S = T without a cache).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from llmfactory.core.documents import Documents, documents_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Mask(ABC):
    """Who attends to whom. `dense` is the definition; `is_causal` tells a backend of a faster way to the same."""

    is_causal: bool = False
    """True where the mask is exactly the lower triangle over [T, T], for which kernels have a fast path."""
    looks_back: bool = False
    """True where no query sees a key in a later column."""
    streams: int = 1
    """Queries of a token: 2 where two streams of the same tokens stand one behind the other, see `StreamsMask`."""

    def __init__(self) -> None:
        self._dense: dict[int | None, Tensor | None] = {}

    def dense(self, window: int | None = None) -> Tensor | None:
        """Bool [B or 1, 1, T, S], True where query t may see key s; None: everything may see everything.

        `window`: a query sees the keys less than so many places away from it, of those that the mask lets it see: itself
        and the `window - 1` nearest ones on each side. None: no limit. Built once a forward, shared by the layers.
        """
        if window not in self._dense:
            seen = self.seen()
            if window is not None:
                order_BT, order_BS = self.order()
                near = (order_BT[:, None, :, None] - order_BS[:, None, None, :]).abs() < window
                seen = near if seen is None else seen & near
            self._dense[window] = seen
        return self._dense[window]

    @abstractmethod
    def seen(self) -> Tensor | None:
        """`dense` without a window."""

    def documents(self) -> Documents | None:
        """The documents that rows consist of, where each sees itself alone and nothing else bends what it sees; None elsewhere.

        Reads values: it waits for the device, and a graph cannot be captured through it.
        """
        return None

    @abstractmethod
    def order(self) -> tuple[Tensor, Tensor]:
        """[B or 1, T] and [B or 1, S]: places of queries and keys in their row."""

    @abstractmethod
    def tile(self, queries: slice, keys: slice) -> Mask:
        """The mask of these columns alone, each a slice with a start and a stop: `dense(window)[..., queries, keys]`."""

    def reach(self, queries: slice, window: int | None = None) -> slice:
        """Columns beyond which these queries see nothing, as far as the kind of mask tells without reading values; a stop of
        None: the last one. Of masks over whole rows."""
        start = 0 if window is None else max(0, queries.start - window + 1)
        if self.looks_back:
            return slice(start, queries.stop)
        return slice(start, None if window is None else queries.stop + window - 1)


class FullMask(Mask):
    """Everything sees everything: no padding, one text a row. A window needs the row's length."""

    def __init__(self, length: int | None = None, device: torch.device | None = None) -> None:
        super().__init__()
        self.length, self.device = length, device

    def seen(self) -> None:
        return None

    def order(self) -> tuple[Tensor, Tensor]:
        if self.length is None:
            raise ValueError("a window over tokens whose number and order are unknown")
        places_1T = _places(self.length, self.device)
        return places_1T, places_1T

    def tile(self, queries: slice, keys: slice) -> Mask:
        if self.length is None:
            return self
        places_1T = self.order()[0]
        return PlacesMask(places_1T[:, queries], places_1T[:, keys], causal=False)


class SegmentMask(Mask):
    """Everything sees everything of its own document: queries of `segments_BT`, keys of `segments_BS`; 0 is padding.

    The mask of encoders, and of cross-attention from a decoder's rows to the encoder's, which have no common order.
    `order_BT`, `order_BS`: places in the row (None: both are the column index, S = T).
    """

    def __init__(
        self,
        segments_BT: Tensor,
        segments_BS: Tensor | None = None,
        order_BT: Tensor | None = None,
        order_BS: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.segments_BT = segments_BT
        self.segments_BS = segments_BT if segments_BS is None else segments_BS
        self.order_BT, self.order_BS = order_BT, order_BS
        self._documents: list[Documents | None] = []  # once found

    def seen(self) -> Tensor:
        return self.segments_BT[:, None, :, None] == self.segments_BS[:, None, None, :]

    def documents(self) -> Documents | None:
        if self.segments_BS is not self.segments_BT or self.order_BT is not None:
            return None
        if not self._documents:
            self._documents.append(documents_of(self.segments_BT, causal=False))
        return self._documents[0]

    def order(self) -> tuple[Tensor, Tensor]:
        if self.order_BT is not None and self.order_BS is not None:
            return self.order_BT, self.order_BS
        if self.segments_BS is not self.segments_BT:
            raise ValueError("a window over two texts that have no common order")
        places_1T = _places(self.segments_BT.shape[1], self.segments_BT.device)
        return places_1T, places_1T

    def tile(self, queries: slice, keys: slice) -> SegmentMask:
        segments_BT, segments_BS = self.segments_BT[:, queries], self.segments_BS[:, keys]
        if self.segments_BS is not self.segments_BT and self.order_BT is None:
            return SegmentMask(segments_BT, segments_BS)
        if queries == keys and self.order_BT is None:
            return SegmentMask(segments_BT)
        order_BT, order_BS = self.order()
        return SegmentMask(segments_BT, segments_BS, order_BT[:, queries], order_BS[:, keys])


class CausalMask(Mask):
    """Each token sees itself and all before it in its row: `length` keys, of which the last `queries` (None: all) ask."""

    def __init__(self, length: int, device: torch.device | None = None, queries: int | None = None) -> None:
        super().__init__()
        self.length, self.device = length, device
        self.queries = length if queries is None else queries
        self.is_causal = self.looks_back = self.queries == length

    def seen(self) -> Tensor | None:
        if self.queries == 1:
            return None
        order_1T, order_1S = self.order()
        return (order_1T[:, :, None] >= order_1S[:, None, :])[:, None]

    def order(self) -> tuple[Tensor, Tensor]:
        places_1S = _places(self.length, self.device)
        return places_1S[:, self.length - self.queries :], places_1S

    def tile(self, queries: slice, keys: slice) -> Mask:
        if self.is_causal and queries == keys:
            return CausalMask(keys.stop - keys.start, self.device)
        first = self.length - self.queries + queries.start
        order_1T, order_1S = self.order()
        return PlacesMask(order_1T[:, queries], order_1S[:, keys], causal=first < keys.stop - 1)


class PlacesMask(Mask):
    """Of queries and keys at these places of a row, all see all, or (`causal`) what does not stand behind them."""

    def __init__(self, order_1T: Tensor, order_1S: Tensor, causal: bool) -> None:
        super().__init__()
        self.order_1T, self.order_1S, self.causal = order_1T, order_1S, causal

    def seen(self) -> Tensor | None:
        return (self.order_1T[:, :, None] >= self.order_1S[:, None, :])[:, None] if self.causal else None

    def order(self) -> tuple[Tensor, Tensor]:
        return self.order_1T, self.order_1S

    def tile(self, queries: slice, keys: slice) -> PlacesMask:
        return PlacesMask(self.order_1T[:, queries], self.order_1S[:, keys], self.causal)


class DocumentMask(Mask):
    """Causal within each document of a packed row; padding (segment 0) is seen by padding only.

    Also the mask of left- or right-padded rows (one document each) and of cached decoding: `segments_BS` are the documents
    of the keys, `segments_BT` those of the queries, `order_BS` and `order_BT` their order in the row (None: both are the
    column index, S = T).
    """

    def __init__(
        self,
        segments_BT: Tensor,
        segments_BS: Tensor | None = None,
        order_BT: Tensor | None = None,
        order_BS: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.segments_BT = segments_BT
        self.segments_BS = segments_BT if segments_BS is None else segments_BS
        self._documents: list[Documents | None] = []  # once found
        self.order_BT, self.order_BS = order_BT, order_BS
        self.looks_back = order_BT is None

    def seen(self) -> Tensor:
        order_BT, order_BS = self.order()
        same = self.segments_BT[:, :, None] == self.segments_BS[:, None, :]
        return (same & (order_BT[:, :, None] >= order_BS[:, None, :]))[:, None]

    def documents(self) -> Documents | None:
        if self.segments_BS is not self.segments_BT or self.order_BT is not None:
            return None
        if not self._documents:
            self._documents.append(documents_of(self.segments_BT, causal=True))
        return self._documents[0]

    def order(self) -> tuple[Tensor, Tensor]:
        if self.order_BT is None or self.order_BS is None:
            places_1T = _places(self.segments_BT.shape[1], self.segments_BT.device)
            return places_1T, places_1T
        return self.order_BT, self.order_BS

    def tile(self, queries: slice, keys: slice) -> DocumentMask:
        segments_BT = self.segments_BT[:, queries]
        if queries == keys and self.order_BT is None:
            return DocumentMask(segments_BT)
        order_BT, order_BS = self.order()
        return DocumentMask(segments_BT, self.segments_BS[:, keys], order_BT[:, queries], order_BS[:, keys])


class PrefixMask(Mask):
    """Causal within each document, but its prefix is seen by all of it, so that the prefix sees itself in both directions
    (Dong et al. 2019, UniLM, figure 1; GLM).

    `prefix_BT` is 1 for the tokens of a document's prefix, which stand at its beginning; `prefix_BS` the same of the keys
    (None: S = T). The others are those of `DocumentMask`.
    """

    def __init__(
        self,
        prefix_BT: Tensor,
        segments_BT: Tensor,
        prefix_BS: Tensor | None = None,
        segments_BS: Tensor | None = None,
        order_BT: Tensor | None = None,
        order_BS: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.causal = DocumentMask(segments_BT, segments_BS, order_BT, order_BS)
        self.prefix_BT, self.prefix_BS = prefix_BT, prefix_BT if prefix_BS is None else prefix_BS

    def seen(self) -> Tensor:
        same = self.causal.segments_BT[:, None, :, None] == self.causal.segments_BS[:, None, None, :]
        return self.causal.seen() | (same & self.prefix_BS.bool()[:, None, None, :])

    def order(self) -> tuple[Tensor, Tensor]:
        return self.causal.order()

    def tile(self, queries: slice, keys: slice) -> PrefixMask:
        causal = self.causal.tile(queries, keys)
        order = causal.order_BT, causal.order_BS
        return PrefixMask(self.prefix_BT[:, queries], causal.segments_BT, self.prefix_BS[:, keys], causal.segments_BS, *order)


class PermutationMask(Mask):
    """Each token sees those that come before it in a factorization order (Yang et al. 2019, section 2.3), within its document.

    `place_BT`: place of each token in that order. Tokens that share a place see each other; those to be predicted have
    places of their own, behind the others.
    `strict`: the mask of the query stream, in which a token does not see its own place; else that of the content stream.
    """

    def __init__(self, place_BT: Tensor, segments: Tensor | SegmentMask, strict: bool, place_BS: Tensor | None = None) -> None:
        """`segments`: documents [B, T], or their mask; `place_BS`: places of the keys (None: S = T)."""
        super().__init__()
        self.segments = segments if isinstance(segments, SegmentMask) else SegmentMask(segments)
        self.place_BT, self.place_BS, self.strict = place_BT, place_BT if place_BS is None else place_BS, strict

    def seen(self) -> Tensor:
        own_BT, others_BS = self.place_BT[:, None, :, None], self.place_BS[:, None, None, :]
        return self.segments.seen() & (own_BT > others_BS if self.strict else own_BT >= others_BS)

    def order(self) -> tuple[Tensor, Tensor]:
        return self.segments.order()

    def tile(self, queries: slice, keys: slice) -> PermutationMask:
        places = self.place_BT[:, queries], self.place_BS[:, keys]
        return PermutationMask(places[0], self.segments.tile(queries, keys), self.strict, places[1])


class StreamsMask(Mask):
    """Of two streams one behind the other, `length` queries each, which both read the first one's keys (Yang et al. 2019)."""

    streams = 2

    def __init__(self, content: Mask, query: Mask, length: int) -> None:
        super().__init__()
        self.content, self.query, self.length = content, query, length

    def seen(self) -> Tensor:
        import torch

        both = [mask.dense() for mask in (self.content, self.query)]
        assert both[0] is not None
        assert both[1] is not None
        return torch.cat([both[0], both[1]], 2)

    def order(self) -> tuple[Tensor, Tensor]:
        queries, keys = self.content.order()
        return queries.repeat(1, 2), keys

    def tile(self, queries: slice, keys: slice) -> Mask:
        """Of queries of one stream."""
        mask, queries = self._stream(queries)
        return mask.tile(queries, keys)

    def reach(self, queries: slice, window: int | None = None) -> slice:
        mask, queries = self._stream(queries)
        return mask.reach(queries, window)

    def _stream(self, queries: slice) -> tuple[Mask, slice]:
        """The mask of the stream that these queries are of, and their columns in it."""
        if queries.stop <= self.length:
            return self.content, queries
        if queries.start < self.length:
            raise ValueError("a tile over both streams")
        return self.query, slice(queries.start - self.length, queries.stop - self.length)


class RecentMask(Mask):
    """Another mask, of which only the last `n_keys` keys are there."""

    def __init__(self, mask: Mask, n_keys: int) -> None:
        super().__init__()
        self.mask, self.n_keys = mask, n_keys

    def seen(self) -> Tensor | None:
        seen = self.mask.dense()
        return None if seen is None else seen[..., -self.n_keys :]

    def order(self) -> tuple[Tensor, Tensor]:
        order_BT, order_BS = self.mask.order()
        return order_BT, order_BS[:, -self.n_keys :]

    def tile(self, queries: slice, keys: slice) -> Mask:
        left_out = self.mask.order()[1].shape[1] - self.n_keys
        return self.mask.tile(queries, slice(keys.start + left_out, keys.stop + left_out))


class CutMask(Mask):
    """Of rows of which this process holds a piece, queries and keys alike. It brings its own attention, which asks the others."""

    @abstractmethod
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
        """`kernel.attention.attend` of this process's queries over the keys of all: k and v are its own, `bias` is [1 or B, H,
        T, S] over the columns of the whole row; [B, H, T, E]."""

    def tile(self, queries: slice, keys: slice) -> Mask:
        raise TypeError("what is cut already is not cut again")


def _places(length: int, device: torch.device | None) -> Tensor:
    """[1, length]."""
    import torch

    return torch.arange(length, device=device)[None]
