"""A feed-forward n-gram model (Bengio et al. 2003, equation 1): y = b + W x + U tanh(d + H x), p = softmax(y).

x are the embeddings of the last n - 1 tokens, side by side. [U W] is the head's one matrix, which is multiplied with
[tanh(d + H x), x]; without direct connections it is U alone. Where a document has fewer tokens yet, a learned vector of its own
stands for each that is missing.
"""

from __future__ import annotations

import torch
from torch import nn

from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.model.history import history
from llmfactory.model.norm.spec import None_
from llmfactory.model.part import declare_linear
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import NeuralNgram
from llmfactory.model.steps import HIDDEN, Pass, Step


class NeuralNgramModel(Skeleton):
    """tokens [B, T] -> hidden [B, T, width of the head's matrix]."""

    def __init__(self, spec: NeuralNgram) -> None:
        super().__init__()
        self.spec: NeuralNgram = spec
        self.direct = spec.direct
        self.embedding = spec.embedding.build(spec.vocab_size, spec.dim, spec.init_std)
        self.missing = nn.Parameter(torch.zeros(spec.dim))
        self.dropout = nn.Dropout(spec.dropout)
        self.up = nn.Linear((spec.order - 1) * spec.dim, spec.hidden)
        self.head = spec.head.build(spec.vocab_size, spec.features(), self.embedding, spec.init_std, None_().build)

    def declare(self) -> dict[str, Parameter]:
        return {
            "missing": Parameter(Normal(self.spec.init_std), decay=False),
            **declare_linear("up", self.up, self.spec.init_std, Layout.replicated),
        }

    def steps(self) -> list[Step]:
        return [Step((self.embedding, self.up), self._run, (self.missing,))]

    def _run(self, going: Pass) -> None:
        tokens_BTN = history(going.tokens, going.context, self.spec.order - 1, nothing=-1)
        known_BTN = tokens_BTN >= 0
        x_BTND = self.embedding(tokens_BTN.clamp_min(0), going.context)
        x_BTE = torch.where(known_BTN[..., None], x_BTND, self.missing).flatten(2)
        hidden_BTH = self.dropout(torch.tanh(self.up(self.dropout(x_BTE))))
        going.carried[HIDDEN] = torch.cat([hidden_BTH, x_BTE], -1) if self.direct else hidden_BTH

    def train_flops_per_token(self, seq_len: int) -> float:
        return 3 * 2 * (self.head.weight.numel() + self.up.weight.numel())
