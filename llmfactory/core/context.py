"""What a model needs to know about its tokens besides the tokens: positions, who may attend to whom, decoding state.

They are inputs, so that packing, left padding, prefix masks and cached decoding need no flags inside a model, and nothing
inside a model calls `arange`.

Shapes: B rows, T new tokens (queries), S all tokens that keys exist for (S = T without a cache), H heads, D head width,
M tokens of an encoder's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Mask(ABC):
    """Who attends to whom. `dense` is the definition; `is_causal` tells a backend of a faster way to the same."""

    is_causal: bool = False
    """True where the mask is exactly the lower triangle over [T, T], for which kernels have a fast path."""

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


@dataclass(frozen=True, slots=True)
class Documents:
    """Pieces of the rows, one row behind the other, padding among them."""

    lengths: list[int]
    """Tokens of each; together B T."""
    causal: bool
    """Whether a token sees only those of its document that stand before it, and itself."""


def _documents(segments_BT: Tensor, causal: bool) -> Documents | None:
    """None where the tokens of a document do not stand together."""
    import torch

    starts_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    row_N, column_N = starts_BT.nonzero(as_tuple=True)
    names_N2 = torch.stack((row_N, segments_BT[row_N, column_N]), 1)
    if len(torch.unique(names_N2, dim=0)) < len(names_N2):
        return None
    start_N = row_N * segments_BT.shape[1] + column_N
    return Documents(start_N.diff(append=start_N.new_tensor([segments_BT.numel()])).tolist(), causal)


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


class SegmentMask(Mask):
    """Everything sees everything of its own document: queries of `segments_BT`, keys of `segments_BS`; 0 is padding.

    The mask of encoders, and of cross-attention from a decoder's rows to the encoder's, which have no common order.
    """

    def __init__(self, segments_BT: Tensor, segments_BS: Tensor | None = None) -> None:
        super().__init__()
        self.segments_BT = segments_BT
        self.segments_BS = segments_BT if segments_BS is None else segments_BS
        self._documents: list[Documents | None] = []  # once found

    def seen(self) -> Tensor:
        return self.segments_BT[:, None, :, None] == self.segments_BS[:, None, None, :]

    def documents(self) -> Documents | None:
        if self.segments_BS is not self.segments_BT:
            return None
        if not self._documents:
            self._documents.append(_documents(self.segments_BT, causal=False))
        return self._documents[0]

    def order(self) -> tuple[Tensor, Tensor]:
        if self.segments_BS is not self.segments_BT:
            raise ValueError("a window over two texts that have no common order")
        places_1T = _places(self.segments_BT.shape[1], self.segments_BT.device)
        return places_1T, places_1T


class CausalMask(Mask):
    """Each token sees itself and all before it in its row: `length` keys, of which the last `queries` (None: all) ask."""

    def __init__(self, length: int, device: torch.device | None = None, queries: int | None = None) -> None:
        super().__init__()
        self.length, self.device = length, device
        self.queries = length if queries is None else queries
        self.is_causal = self.queries == length

    def seen(self) -> Tensor | None:
        if self.queries == 1:
            return None
        order_1T, order_1S = self.order()
        return (order_1T[:, :, None] >= order_1S[:, None, :])[:, None]

    def order(self) -> tuple[Tensor, Tensor]:
        places_1S = _places(self.length, self.device)
        return places_1S[:, self.length - self.queries :], places_1S


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

    def seen(self) -> Tensor:
        order_BT, order_BS = self.order()
        same = self.segments_BT[:, :, None] == self.segments_BS[:, None, :]
        return (same & (order_BT[:, :, None] >= order_BS[:, None, :]))[:, None]

    def documents(self) -> Documents | None:
        if self.segments_BS is not self.segments_BT or self.order_BT is not None:
            return None
        if not self._documents:
            self._documents.append(_documents(self.segments_BT, causal=True))
        return self._documents[0]

    def order(self) -> tuple[Tensor, Tensor]:
        if self.order_BT is None or self.order_BS is None:
            places_1T = _places(self.segments_BT.shape[1], self.segments_BT.device)
            return places_1T, places_1T
        return self.order_BT, self.order_BS


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
        self.prefix_BS = prefix_BT if prefix_BS is None else prefix_BS

    def seen(self) -> Tensor:
        same = self.causal.segments_BT[:, None, :, None] == self.causal.segments_BS[:, None, None, :]
        return self.causal.seen() | (same & self.prefix_BS.bool()[:, None, None, :])

    def order(self) -> tuple[Tensor, Tensor]:
        return self.causal.order()


class PermutationMask(Mask):
    """Each token sees those that come before it in a factorization order (Yang et al. 2019, section 2.3), within its document.

    `place_BT`: place of each token in that order. Tokens that share a place see each other; those to be predicted have
    places of their own, behind the others.
    `strict`: the mask of the query stream, in which a token does not see its own place; else that of the content stream.
    """

    def __init__(self, place_BT: Tensor, segments_BT: Tensor, strict: bool) -> None:
        super().__init__()
        self.place_BT, self.strict, self.segments = place_BT, strict, SegmentMask(segments_BT)

    def seen(self) -> Tensor:
        own_BT, others_BT = self.place_BT[:, None, :, None], self.place_BT[:, None, None, :]
        return self.segments.seen() & (own_BT > others_BT if self.strict else own_BT >= others_BT)

    def order(self) -> tuple[Tensor, Tensor]:
        return self.segments.order()


class StreamsMask(Mask):
    """Of two streams one behind the other, `length` queries each, which both read the first one's keys (Yang et al. 2019)."""

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


def _places(length: int, device: torch.device | None) -> Tensor:
    """[1, length]."""
    import torch

    return torch.arange(length, device=device)[None]


class Reading(Enum):
    """How a model reads the text that it is to continue."""

    forward = "each token sees those before it"
    both = "the text sees itself in both directions, what is written sees all before it (prefix models)"
    blank = "as both; the text ends with a mask and a start token, and what is written stands in the mask's place (GLM)"


class State(Protocol):
    """Decoding state: what earlier calls left behind. Tensors have the rows, B, first, so that rows can be dropped or copied."""

    def append(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; return all of that layer's, [B, H, S, D] each."""
        ...

    def read(self, slot: str) -> tuple[Tensor, ...] | None:
        """What a part wrote under a name in the call before (a recurrent state, keys of an encoder's output); None: nothing yet."""
        ...

    def write(self, slot: str, tensors: tuple[Tensor, ...]) -> None:
        """Leave tensors for the next call."""
        ...


class Record:
    """Terms that parts add to the loss during a forward (the balance of experts), by name.

    Each is a sum over the tokens that are no padding, as an objective's terms are sums: it is divided by the number of those
    tokens in the whole optimizer step. What a part adds must therefore be a sum over rows. Where a row is cut into `Pieces`, each
    process adds its share: a sum over its own tokens as it is, what all of them have computed alike divided by their number.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor) -> None:
        self.sums[name] = self.sums[name] + total if name in self.sums else total


class Pieces(Protocol):
    """Rows cut along their length over several processes, for parts that need more of a row than the piece they are given."""

    def total(self, x: Tensor) -> Tensor:
        """The sum over a row's pieces, on the process of each; gradients are summed likewise."""
        ...

    def whole(self, x_BT: Tensor) -> Tensor:
        """[B, T, ...] of this piece -> the same of whole rows, in their order; without gradients."""
        ...

    def own(self, x_BT: Tensor) -> Tensor:
        """This piece of whole rows."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """The input of an encoder whose output a decoder attends to."""

    tokens: Tensor
    """[B, M] int64."""
    context: Context
    """Of the encoder."""
    mask: Mask
    """Who of the decoder's tokens sees whom of the encoder's: dense [B or 1, 1, T, M]."""


@dataclass(frozen=True, slots=True)
class Context:
    """Everything besides the tokens. Built from the batch's tensors wherever it is needed; it never travels itself."""

    positions: Tensor
    """[B, T] (or [B, R, T] for parts with R position axes)."""
    mask: Mask
    state: State | None = None
    segments: Tensor | None = None
    """[B, T], number of the document of each token within its row, 0 is padding; None: each row is one text without padding."""
    key_positions: Tensor | None = None
    """[B, S] (or [B, R, S]), positions of the keys; None: S = T and they are `positions`."""
    types: Tensor | None = None
    """[B, T], which of several kinds of text a token belongs to (question and passage); None: all the first."""
    source: Source | None = None
    """What the encoder of an encoder-decoder reads; None where the state holds its output already, or there is no encoder."""
    memory: Tensor | None = None
    """[B, M, D], the encoder's output, set by the skeleton for its cross-attention."""
    memory_mask: Mask | None = None
    """Dense [B or 1, 1, T, M]; set together with `memory`."""
    images: Tensor | None = None
    """[B, N, C, Y, X], N pictures a row."""
    record: Record | None = None
    """Where parts leave their own terms of the loss; None: nobody asks."""
    pieces: Pieces | None = None
    """How rows are cut: all other fields are of this process's piece; None: rows are whole."""
    rotary: tuple[Tensor, Tensor] | None = None
    """(cos, sin), each [B, 1, T, D/2 or D], set by the position part once a forward."""
    bias: Tensor | None = None
    """[1 or B, H, T, S], added to the attention scores, set by the position part once a forward."""
    relative: Tensor | None = None
    """Vectors of the distances between tokens, for attention that scores them (Transformer-XL), set by the position part."""

    def with_(self, **changes: Any) -> Context:
        """A copy with other values of some fields."""
        return replace(self, **changes)
