"""What a model needs to know about its tokens besides the tokens: positions, who may attend to whom, decoding state.

They are inputs, so that packing, left padding, prefix masks and cached decoding need no flags inside a model, and nothing
inside a model calls `arange`.

Shapes: B rows, T new tokens (queries), S all tokens that keys exist for (S = T without a cache), H heads, D head width,
M tokens of an encoder's input.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Mask(ABC):
    """Who attends to whom. `dense` is the definition; `is_causal` tells a backend of a faster way to the same."""

    is_causal: bool = False
    """True where the mask is exactly the lower triangle over [T, T], for which kernels have a fast path."""

    @abstractmethod
    def dense(self) -> Tensor | None:
        """Bool [B or 1, 1, T, S], True where query t may see key s; None: everything may see everything."""


class FullMask(Mask):
    """Everything sees everything: no padding, one text a row."""

    def dense(self) -> None:
        return None


class SegmentMask(Mask):
    """Everything sees everything of its own document: queries of `segments_BT`, keys of `segments_BS`; 0 is padding.

    The mask of encoders, and of cross-attention from a decoder's rows to the encoder's.
    """

    def __init__(self, segments_BT: Tensor, segments_BS: Tensor | None = None) -> None:
        self.segments_BT = segments_BT
        self.segments_BS = segments_BT if segments_BS is None else segments_BS
        self._dense: Tensor | None = None

    def dense(self) -> Tensor:
        if self._dense is None:
            self._dense = self.segments_BT[:, None, :, None] == self.segments_BS[:, None, None, :]
        return self._dense


class CausalMask(Mask):
    """Each token sees itself and all before it in its row."""

    is_causal = True

    def __init__(self, length: int, device: torch.device | None = None) -> None:
        self.length, self.device = length, device

    def dense(self) -> Tensor:
        import torch

        return torch.ones(1, 1, self.length, self.length, dtype=torch.bool, device=self.device).tril()


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
        self.segments_BT = segments_BT
        self.segments_BS = segments_BT if segments_BS is None else segments_BS
        self.order_BT, self.order_BS = order_BT, order_BS
        self._dense: Tensor | None = None

    def dense(self) -> Tensor:
        if self._dense is None:  # built once a forward, shared by the layers
            import torch

            same = self.segments_BT[:, None, :, None] == self.segments_BS[:, None, None, :]
            if self.order_BT is None or self.order_BS is None:
                order = torch.arange(self.segments_BT.shape[1], device=self.segments_BT.device)
                before = order[None, None, :, None] >= order[None, None, None, :]
            else:
                before = self.order_BT[:, None, :, None] >= self.order_BS[:, None, None, :]
            self._dense = same & before
        return self._dense


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
    tokens in the whole optimizer step. What a part adds must therefore be a sum over rows.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor) -> None:
        self.sums[name] = self.sums[name] + total if name in self.sums else total


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
    rotary: tuple[Tensor, Tensor] | None = None
    """(cos, sin), each [B, 1, T, D/2 or D], set by the position part once a forward."""
    bias: Tensor | None = None
    """[1 or B, H, T, S], added to the attention scores, set by the position part once a forward."""
    relative: Tensor | None = None
    """Vectors of the distances between tokens, for attention that scores them (Transformer-XL), set by the position part."""

    def with_(self, **changes: Any) -> Context:
        """A copy with other values of some fields."""
        return replace(self, **changes)
