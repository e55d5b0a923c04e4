"""Next-token prediction (Bengio et al. 2003): the mean over target tokens of -log p(label), optionally smoothed and weighted.

    loss = - sum_t log p(x_t | x_<t) / number of t

With weights w the loss is sum(w loss) / sum(w) over the tokens that have a target.
"""

from __future__ import annotations

from dataclasses import replace

from llmfactory.objective.spec import Causal
from llmfactory.objective.tokens import TokenObjective


class CausalObjective(TokenObjective):
    likelihood = continues = True
    sparse = False

    def __init__(self, spec: Causal) -> None:
        self.spec, self.label_smoothing = spec, spec.label_smoothing

    def plain(self) -> CausalObjective:
        """Without label smoothing: the likelihood that every report and comparison means."""
        return CausalObjective(replace(self.spec, label_smoothing=0.0))
