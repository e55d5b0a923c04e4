"""What a model needs to know about its tokens besides the tokens: positions, who may attend to whom, decoding state.

They are inputs, so that packing, left padding, prefix masks and cached decoding need no flags inside a model, and nothing
inside a model calls `arange`.

Shapes: B rows, T new tokens (queries), S all tokens that keys exist for (S = T without a cache), H heads, D head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

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
    """Decoding state: what earlier calls left behind. The key/value cache is one; recurrent models have their own."""

    def append(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; return all of that layer's, [B, H, S, D] each."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """Everything besides the tokens. Built from the batch's tensors wherever it is needed; it never travels itself."""

    positions: Tensor
    """[B, T] (or [B, R, T] for parts with R position axes)."""
    mask: Mask
    state: State | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    """(cos, sin), each [B, 1, T, D/2 or D], set by the position part once a forward."""
    bias: Tensor | None = None
    """[1 or B, H, T, S], added to the attention scores, set by the position part once a forward."""

    def with_rotary(self, rotary: tuple[Tensor, Tensor]) -> Context:
        return replace(self, rotary=rotary)

    def with_bias(self, bias: Tensor) -> Context:
        return replace(self, bias=bias)
