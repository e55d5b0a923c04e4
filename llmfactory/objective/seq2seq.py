"""Write a text after reading another (Sutskever et al. 2014): the mean over target tokens of -log p(label | source, labels before)."""

from __future__ import annotations

from llmfactory.objective.tokens import TokenObjective


class Seq2seqObjective(TokenObjective):
    """Labels are [B, T] of the decoder."""

    sparse = True

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def plain(self) -> Seq2seqObjective:
        """Without label smoothing."""
        return Seq2seqObjective(0.0)
