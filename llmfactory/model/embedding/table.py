"""What embeddings of tokens share: a table with a row for each."""

from __future__ import annotations

from torch import Tensor, nn

from llmfactory.kernel.embedding import embedding
from llmfactory.model.part import Part


class TokenTable(Part):
    """Owns `weight` [V, width]. The rows of tokens are looked up by `look_up` alone, which a layout that cuts the table replaces."""

    weight: nn.Parameter

    def vectors(self, tokens: Tensor) -> Tensor:
        """What the table holds of ids [...], [..., width]; a table that knows more than its rows says so here."""
        return self.look_up(tokens)

    def look_up(self, tokens: Tensor) -> Tensor:
        """ids [...] -> rows [..., width]."""
        return embedding(tokens, self.weight)
