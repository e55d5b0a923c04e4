"""What a model needs to know about its tokens besides the tokens: positions, who may attend to whom, decoding state.

They are inputs, so that packing, left padding, prefix masks and cached decoding need no flags inside a model, and nothing
inside a model calls `arange`.

Shapes: B rows, T new tokens (queries), S all tokens that keys exist for (S = T without a cache), H heads, D head width,
M tokens of an encoder's input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from llmfactory.core.branches import BranchMask as BranchMask
from llmfactory.core.documents import Documents as Documents
from llmfactory.core.mask import CausalMask as CausalMask
from llmfactory.core.mask import CutMask as CutMask
from llmfactory.core.mask import DocumentMask as DocumentMask
from llmfactory.core.mask import FullMask as FullMask
from llmfactory.core.mask import Mask as Mask
from llmfactory.core.mask import PermutationMask as PermutationMask
from llmfactory.core.mask import PrefixMask as PrefixMask
from llmfactory.core.mask import RecentMask as RecentMask
from llmfactory.core.mask import SegmentMask as SegmentMask
from llmfactory.core.mask import StreamsMask as StreamsMask

if TYPE_CHECKING:
    from torch import Tensor


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

    @property
    def size(self) -> int:
        """Processes that hold a piece of a row."""
        ...

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
