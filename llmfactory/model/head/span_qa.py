"""Where an answer starts and ends (Devlin et al. 2018, section 4.2): a score of each token to be the one or the other.

Each is a distribution over the tokens of a document, so the loss is a softmax over T, not over the two outputs.
"""

from __future__ import annotations

from llmfactory.model.head.part import LinearHead


class SpanHead(LinearHead):
    """hidden [..., D] -> scores [..., 2], of start and end."""

    def __init__(self, dim: int, std: float) -> None:
        super().__init__(2, dim, std, bias=True)
