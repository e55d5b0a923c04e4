"""Replaced-token detection (ELECTRA, Clark et al. 2020, section 2): a small generator fills masked places, the model tells for every
token whether it is the original.

    loss = - sum_{t in M} log p_G(x_t | masked x) / |M|
           + w * sum_t BCE(D(x^)_t, [x^_t != x_t]) / n,     x^_t ~ p_G(. | masked x) for t in M, else x_t

M is 15 % of the tokens; n counts all. A place where the generator happens to draw the right token is an original. The generator
shares the vocabulary's vectors; nothing flows back to it through its samples.

A sample is the inverse of p_G's distribution function at a random number that comes with the batch, so it depends neither on the
process nor on the micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.data.corruption.corruption import Corruption
from llmfactory.data.corruption.masked import Masked as Masking
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.model.part import Part
from llmfactory.model.skeleton import COMPANION
from llmfactory.model.spec import EncoderOnly
from llmfactory.objective.objective import Head, Objective, Outputs, Terms
from llmfactory.objective.spec import ReplacedToken
from llmfactory.objective.tokens import TokenObjective

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.core.context import Context
    from llmfactory.model.skeleton import Skeleton

ROWS = 2048
"""Tokens that are drawn at once: the probabilities of all of them together may not fit."""


@dataclass(frozen=True, slots=True)
class Both(Outputs):
    """Of the discriminator, and of the generator."""

    guesses: Outputs
    tokens: Tensor
    """[B, T], what the discriminator has read."""


class ReplacedTokenObjective(Objective):
    terms = ("generator", "discriminator")

    def __init__(self, spec: ReplacedToken) -> None:
        self.spec = spec
        self.unit = f"nats: generator + {spec.weight:g} x discriminator"
        self.guessing = TokenObjective()

    def corruption(self, vocabulary: Vocabulary, seq_len: int) -> Corruption:
        return Masking(vocabulary, seq_len, rate=self.spec.rate, mask_share=1.0, random_share=0.0, spare=True)

    def equip(self, model: Skeleton) -> None:
        """`model.generator`, which reads with the model's own embedding and writes with its matrix."""
        assert isinstance(model.spec, EncoderOnly)
        spec = self.spec.generator(model.spec)
        generator = spec.build()
        embedding = model.embedding
        assert isinstance(embedding, Part)
        generator.embedding = embedding
        generator.head = spec.head.build(spec.vocab_size, spec.dim, embedding, spec.init_std, spec.norm.build)
        model.add_module(COMPANION.rstrip("."), generator)

    def outputs(self, model: Skeleton, batch: Batch, context: Context) -> Outputs:
        generator = cast("Skeleton", model.generator)
        guesses = Outputs(generator(batch["tokens"], context), generator.head)
        tokens_BT = batch["tokens"].clone()
        masked_BT = batch["labels"] != IGNORE
        with torch.no_grad():
            tokens_BT[masked_BT] = draw(guesses.head, guesses.hidden[masked_BT], batch["uniform"][masked_BT])
        return Both(model(tokens_BT, context), model.head, guesses, tokens_BT)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        assert isinstance(outputs, Both)
        counts = self.denominators(batch)
        (guessed, _) = self.guessing(outputs.guesses, batch)["loss"]
        real_BT = batch["segments"] > 0
        replaced_BT = (batch["labels"] != IGNORE) & (outputs.tokens != batch["labels"])
        logits_N = outputs.head(outputs.hidden[real_BT])[..., 0]
        logits_N = logits_N.to(torch.promote_types(logits_N.dtype, torch.float32))
        told = F.binary_cross_entropy_with_logits(logits_N, replaced_BT[real_BT].to(logits_N.dtype), reduction="sum")
        return {
            "generator": (guessed, counts["generator"]),
            "discriminator": (self.spec.weight * told, counts["discriminator"]),
        }

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return {"generator": (batch["labels"] != IGNORE).sum(), "discriminator": (batch["segments"] > 0).sum()}


def draw(head: Head, hidden_ND: Tensor, uniform_N: Tensor) -> Tensor:
    """A token [N] from the softmax of each vector's logits: the first whose cumulative probability exceeds its number."""
    drawn = []
    for hidden, uniform in zip(hidden_ND.split(ROWS), uniform_N.split(ROWS), strict=True):  # type: ignore[no-untyped-call]
        below = head(hidden).double().softmax(-1).cumsum(-1)
        drawn.append(torch.searchsorted(below, uniform[:, None] * below[:, -1:], right=True)[:, 0].clamp(max=below.shape[1] - 1))
    return torch.cat(drawn) if drawn else uniform_N.new_zeros(0, dtype=torch.int64)
