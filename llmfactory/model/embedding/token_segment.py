"""A trained vector of the token and one of the kind of text that it belongs to, added (Devlin et al. 2018, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.context import Context
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout, Normal, Parameter
from llmfactory.kernel.embedding import embedding
from llmfactory.model.embedding.table import TokenTable


class TokenSegmentEmbedding(TokenTable):
    """ids [B, T] and `context.types` [B, T] -> vectors [B, T, D].

    Without types all tokens are of the first kind; where there is one kind only, it is that of all texts (RoBERTa).
    """

    def __init__(self, vocab_size: int, n_types: int, dim: int, std: float) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.zeros(vocab_size, dim))
        self.types = nn.Parameter(torch.zeros(n_types, dim))

    def declare(self) -> dict[str, Parameter]:
        return {"weight": Parameter(Normal(self.std), Layout.vocab), "types": Parameter(Normal(self.std))}

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        if context.types is None or self.types.shape[0] == 1:
            return self.vectors(tokens_BT) + self.types[0]
        self._check(context.types)
        return self.vectors(tokens_BT) + embedding(context.types, self.types)

    def _check(self, types_BT: Tensor) -> None:
        """By value on the CPU, without waiting elsewhere; as for learned positions."""
        if torch.compiler.is_compiling() or types_BT.is_meta:
            return
        rows = self.types.shape[0]
        if types_BT.device.type != "cpu":
            inside = ((types_BT >= 0) & (types_BT < rows)).all()
            torch._assert_async(inside, f"a token is of none of the {rows} types (model.embedding.n_types={rows})")
            return
        low, high = (int(end) for end in types_BT.aminmax())
        if low < 0 or high >= rows:
            wrong = low if low < 0 else high
            raise UserError(
                f"a token is of type {wrong}, but the model has {rows} types, from 0 (model.embedding.n_types={rows})"
            )
