"""The interface of heads.

Logits are softcap(features(pool(hidden)) @ weight.T + bias). A loss may take these pieces instead of the logits, to fuse the
product with itself. What the logits mean, the spec says (`HeadSpec.answers`), and what they are about, `pool`:

- tokens (a language model, a tagger, the ends of an answer): `pool` changes nothing, and labels are [B, T];
- documents of a row (a classifier, a reward): `pool` gives a vector for each, [B, K, D], and labels are [B, K]. Document k,
  from 0, is the one whose tokens have segment k + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmfactory.core.batch import IGNORE
from llmfactory.core.sharding import Constant, Normal, Parameter
from llmfactory.kernel.linear_cross_entropy import linear_cross_entropy
from llmfactory.kernel.linear_log_probs import linear_log_probs
from llmfactory.model.part import Part


class Head(Part):
    """Hidden vectors [..., D] -> logits [..., V]; V is the vocabulary, the classes, or however many numbers there are to say."""

    weight: Tensor
    """[V, D]; the embedding's when it is tied."""
    bias: Tensor | None
    """[V], or None."""
    softcap: float | None = None
    """Logits z become softcap * tanh(z / softcap); None: they stay."""

    def pool(self, hidden_BTD: Tensor, segments_BT: Tensor | None = None, documents: int = 1) -> Tensor:
        """The vectors that the head speaks about: every token's, unless it speaks about documents; then [B, documents, D].

        `segments_BT`: the document of each token, 0 is padding; None: each row is one document. A document that a row does not
        have gets zeros.
        """
        return hidden_BTD

    def features(self, hidden: Tensor) -> Tensor:
        """What the matrix is multiplied with, [..., D]: the hidden vectors, unless a head transforms them first."""
        return hidden

    def cross_entropy(
        self, hidden: Tensor, labels: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0, z: float = 0.0
    ) -> Tensor:
        """Sum over labels of weight x (smoothed cross-entropy + z log^2 Z) under the softmax of the logits, with Z its normalizer;
        ignored labels count nothing.

        By `kernel/linear_cross_entropy.py`, without holding all logits; a head that is no matrix computes its own.
        """
        return linear_cross_entropy(
            self.features(hidden),
            self.weight,
            labels,
            bias_V=self.bias,
            weights=weights,
            label_smoothing=label_smoothing,
            softcap=self.softcap,
            z=z,
            kernel=self.kernel,
        )

    def log_probs(self, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        """log p(label) of vectors [..., D] under the softmax of the logits / temperature, in float32 or better; 0 where the label is
        ignored. Only places with a label go through the head, and never all logits are held (`kernel/linear_log_probs.py`)."""
        kept = labels != IGNORE
        return _spread(self.token_log_probs(hidden[kept], labels[kept], temperature, False)[0], kept)

    def log_probs_and_entropy(self, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """`log_probs`, and beside it the entropy of the distribution that each label is drawn from."""
        kept = labels != IGNORE
        logp_N, entropy_N = self.token_log_probs(hidden[kept], labels[kept], temperature, True)
        return _spread(logp_N, kept), _spread(entropy_N, kept)

    def token_log_probs(self, hidden_ND: Tensor, labels_N: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
        """Of tokens that all have a label; the second is empty unless `entropy`."""
        return linear_log_probs(
            self.features(hidden_ND),
            self.weight,
            labels_N,
            bias_V=self.bias,
            softcap=self.softcap,
            temperature=temperature,
            entropy=entropy,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of vectors that `pool` gave, or of some of them."""
        logits = F.linear(self.features(hidden), self.weight, self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _spread(found_N: Tensor, kept: Tensor) -> Tensor:
    """Values of some places, 0 at the others."""
    return found_N.new_zeros(kept.shape).masked_scatter(kept, found_N)


class LinearHead(Head):
    """A matrix of its own with a row for each of a few numbers to say."""

    def __init__(self, outputs: int, dim: int, std: float, bias: bool) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.zeros(outputs, dim))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def declare(self) -> dict[str, Parameter]:
        weight = {"weight": Parameter(Normal(self.std), fan_in=1)}
        return weight if self.bias is None else {**weight, "bias": Parameter(Constant(0.0), decay=False)}
