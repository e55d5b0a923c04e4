"""A static key/value cache: memory for all tokens of a generation is taken once, and steps write into it.

Legend: B rows, H key/value heads, T new tokens, S tokens so far, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmfactory.core.context import State


class KvCache(State):
    """Keys and values of every layer. A layer's memory is made when the layer first writes, with its own heads and dtype."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, int] = {}
        self._slots: dict[str, tuple[Tensor, ...]] = {}

    def append(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; return all of that layer's, [B, H, S, D] each, as views of the cache."""
        if layer not in self._layers:
            self._layers[layer] = (self._memory(k_BHTD), self._memory(v_BHTD))
            self._lengths[layer] = 0
        start = self._lengths[layer]
        end = start + k_BHTD.shape[2]
        if end > self.capacity:
            raise IndexError(f"{end} tokens in a cache made for {self.capacity}")
        keys, values = self._layers[layer]
        keys[:, :, start:end] = k_BHTD
        values[:, :, start:end] = v_BHTD
        self._lengths[layer] = end
        return keys[:, :, :end], values[:, :, :end]

    def _memory(self, new_BHTD: Tensor) -> Tensor:
        """For all tokens; values may be wider or narrower than keys."""
        return new_BHTD.new_empty(*new_BHTD.shape[:2], self.capacity, new_BHTD.shape[3])

    def read(self, slot: str) -> tuple[Tensor, ...] | None:
        """What a part wrote in the call before; None: nothing yet."""
        return self._slots.get(slot)

    def write(self, slot: str, tensors: tuple[Tensor, ...]) -> None:
        """Leave tensors, rows first, for the next call."""
        self._slots[slot] = tensors

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these, in this order; a row may be kept twice."""
        for layer, (keys, values) in self._layers.items():
            index = torch.tensor(rows, device=keys.device)
            self._layers[layer] = (keys[index], values[index])
        for slot, tensors in self._slots.items():
            self._slots[slot] = tuple(tensor[torch.tensor(rows, device=tensor.device)] for tensor in tensors)
