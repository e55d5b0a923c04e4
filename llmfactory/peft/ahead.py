"""Keys that stand ahead of a text's own in every layer: what attention is told of them, and where it finds them.

They come in through the decoding state, which parts with keys and values ask anyway: it gives them more than they have put in.

Legend: B rows, T queries, S keys of the text, P keys ahead, G heads of keys and values, D, E their widths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llmfactory.core.context import Mask, State


class AheadMask(Mask):
    """A mask over S keys, with P more in front, which every query sees; under a window, those less than so many positions away,
    as if they stood at the positions 0 ... P - 1 of the query's document."""

    def __init__(self, mask: Mask, count: int, positions_BT: Tensor | None = None) -> None:
        """`positions_BT`: of the queries in their documents, those ahead counted."""
        super().__init__()
        self.mask, self.count, self.positions_BT = mask, count, positions_BT

    def dense(self, window: int | None = None) -> Tensor | None:
        if window not in self._dense:
            self._dense[window] = self._ahead(self.mask.dense(window), window)
        return self._dense[window]

    def _ahead(self, seen_B1TS: Tensor | None, window: int | None) -> Tensor | None:
        if seen_B1TS is None:  # of all keys: so is what stands ahead
            return None
        ahead_B1TP = seen_B1TS.new_ones(*seen_B1TS.shape[:3], self.count)
        if window is not None:
            assert self.positions_BT is not None
            places_P = torch.arange(self.count, device=seen_B1TS.device)
            ahead_B1TP = (self.positions_BT[:, None, :, None] - places_P) < window
        rows = max(len(seen_B1TS), len(ahead_B1TP))
        return torch.cat((ahead_B1TP.expand(rows, -1, -1, -1), seen_B1TS.expand(rows, -1, -1, -1)), -1)

    def seen(self) -> Tensor | None:
        return self.dense()

    def order(self) -> tuple[Tensor, Tensor]:
        raise ValueError("keys that stand ahead of every document have no place in the row")

    def tile(self, queries: slice, keys: slice) -> Mask:
        raise TypeError("keys that stand ahead of every document are not cut along the row")


Pair = tuple[Tensor, Tensor]
"""Keys [G, P, D] and values [G, P, E]; of parts that keep something else (a latent vector), what they keep."""


class Ahead(State):
    """A decoding state that begins with trained keys and values in each layer."""

    def __init__(self, pairs: Mapping[int | str, Callable[[], Pair]], inner: State | None, first: bool) -> None:
        """`pairs`: by layer (and by the slot of attention to an encoder's output), made when the layer asks, since a layout may give its weights out only then. `inner`: the decoding's own
        state, None: there is none. `first`: it is empty yet."""
        self.pairs, self.inner, self.first = pairs, inner, first

    def append(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            keys_GPD, values_GPE = self.pairs[layer]()
            k_BHTD, v_BHTD = _joined(keys_GPD, k_BHTD), _joined(values_GPE, v_BHTD)
        return (k_BHTD, v_BHTD) if self.inner is None else self.inner.append(layer, k_BHTD, v_BHTD)

    def read(self, slot: str) -> tuple[Tensor, ...] | None:
        return None if self.inner is None else self.inner.read(slot)

    def write(self, slot: str, tensors: tuple[Tensor, ...]) -> None:
        if self.inner is not None:
            self.inner.write(slot, tensors)


def _joined(ahead_GPD: Tensor, x_BGTD: Tensor) -> Tensor:
    return torch.cat((ahead_GPD.to(x_BGTD.dtype).expand(len(x_BGTD), -1, -1, -1), x_BGTD), 2)
