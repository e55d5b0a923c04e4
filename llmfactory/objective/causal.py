"""Next-token prediction (Bengio et al. 2003): the mean over target tokens of -log p(label), optionally smoothed and weighted.

    loss = - sum_t log p(x_t | x_<t) / number of t

With weights w the loss is sum(w loss) / sum(w) over the tokens that have a target. The z-loss adds a log^2 Z of each token, with Z the
normalizer of its softmax, which keeps Z near one (Chowdhery et al. 2022, section 5).
"""

from __future__ import annotations

from dataclasses import replace

from llmfactory.objective.spec import Causal
from llmfactory.objective.tokens import TokenObjective


class CausalObjective(TokenObjective):
    likelihood = continues = True
    sparse = False

    def __init__(self, spec: Causal) -> None:
        self.spec, self.label_smoothing, self.z_loss = spec, spec.label_smoothing, spec.z_loss

    def plain(self) -> CausalObjective:
        """Without label smoothing and z-loss: the likelihood that every report and comparison means."""
        return CausalObjective(replace(self.spec, label_smoothing=0.0, z_loss=0.0))
