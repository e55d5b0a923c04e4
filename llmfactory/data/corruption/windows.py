"""The words near each word, and random words to tell them from (Mikolov et al. 2013b, sections 2.2 and 2.3).

Frequent words are left out first, so that windows reach further; then each word draws how far its window reaches. The batch is

| key | shape | meaning |
|---|---|---|
| `tokens`, `labels` | [B, T] | the words that are left, moved to the front of the row; labels are the same, -100 behind them |
| `segments`, `positions` | [B, T] | of their documents; 0 behind them |
| `near` | [B, T, 2W] | words within each one's window and document, -100 where there is none |
| `noise` | [B, T, S, k] | k random words for each of S, the near words or the word itself; -100 where one is the word itself |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.chance import uniform
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.order import Words

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

KEPT, REACH, NOISE = 0, 1, 2
"""Streams of random numbers."""


class Windows(Corruption):
    """`frequencies_V`: how often each id stands in the training text. `each`: noise for each near word, not for each word."""

    def __init__(
        self,
        frequencies_V: NDArray[np.int64],
        length: int,
        *,
        window: int,
        negatives: int,
        subsample: float | None,
        noise_power: float,
        each: bool,
    ) -> None:
        self.raw_length, self.window, self.negatives, self.each = length, window, negatives, each
        share_V = frequencies_V / frequencies_V.sum()
        self.kept_V = np.ones(len(share_V))
        if subsample is not None:
            self.kept_V = np.minimum(np.sqrt(subsample / np.maximum(share_V, 1e-300)), 1.0)
        noise_V = np.where(frequencies_V > 0, frequencies_V.astype(np.float64) ** noise_power, 0.0).cumsum()
        self.noise_V = noise_V / noise_V[-1]

    def __call__(self, batch: Batch, keys_B: Words) -> Batch:
        import torch

        B, T = batch["tokens"].shape
        tokens, segments = batch["tokens"].numpy(), batch["segments"].numpy()
        left = (segments > 0) & (uniform(keys_B, T, KEPT) < self.kept_V[tokens])
        order = np.argsort(~left, axis=1, kind="stable")
        left = np.take_along_axis(left, order, 1)
        tokens = np.where(left, np.take_along_axis(tokens, order, 1), 0)
        segments = np.where(left, np.take_along_axis(segments, order, 1), 0)
        positions = np.where(left, np.take_along_axis(batch["positions"].numpy(), order, 1), 0)
        near = self._near(tokens, segments, 1 + (uniform(keys_B, T, REACH) * self.window).astype(np.int64))
        targets = near if self.each else np.where(left, tokens, IGNORE)[..., None]
        S = targets.shape[-1]
        drawn = uniform(keys_B, T * S * self.negatives, NOISE).reshape(B, T, S, self.negatives)
        noise = np.searchsorted(self.noise_V, drawn, side="right")
        noise[noise == targets[..., None]] = IGNORE
        found = {
            "tokens": tokens,
            "labels": np.where(left, tokens, IGNORE),
            "positions": positions,
            "segments": segments,
            "near": near,
            "noise": noise,
        }
        return {name: torch.from_numpy(np.ascontiguousarray(field, np.int64)) for name, field in found.items()}

    def _near(
        self, tokens_BT: NDArray[np.int64], segments_BT: NDArray[np.int64], reach_BT: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        W = self.window
        wide, wide_segments = (np.pad(field, ((0, 0), (W, W))) for field in (tokens_BT, segments_BT))
        found = []
        for offset in (*range(-W, 0), *range(1, W + 1)):
            at = slice(W + offset, W + offset + tokens_BT.shape[1])
            close = (wide_segments[:, at] == segments_BT) & (segments_BT > 0) & (abs(offset) <= reach_BT)
            found.append(np.where(close, wide[:, at], IGNORE))
        return np.stack(found, -1)
