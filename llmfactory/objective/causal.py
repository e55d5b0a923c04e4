"""Next-token prediction (Bengio et al. 2003): the mean over target tokens of -log p(label), optionally smoothed and weighted.

With weights w the loss is sum(w loss) / sum(w) over the tokens that have a target.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.kernel.linear_cross_entropy import linear_cross_entropy
from llmfactory.objective.objective import Objective, Outputs, Terms
from llmfactory.objective.spec import Causal

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch


class CausalObjective(Objective):
    """One term, `loss`."""

    terms = ("loss",)

    def __init__(self, spec: Causal) -> None:
        self.spec, self.label_smoothing = spec, spec.label_smoothing

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        total = linear_cross_entropy(
            outputs.head.features(outputs.hidden),
            outputs.head.weight,
            batch["labels"],
            bias_V=outputs.head.bias,
            weights=batch.get("weights"),
            label_smoothing=self.label_smoothing,
            softcap=outputs.head.softcap,
        )
        return {"loss": (total, self.denominators(batch)["loss"])}

    def plain(self) -> CausalObjective:
        """Without label smoothing: the likelihood that every report and comparison means."""
        return CausalObjective(replace(self.spec, label_smoothing=0.0))

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        kept = batch["labels"] != IGNORE
        weights = batch.get("weights")
        return {"loss": kept.sum() if weights is None else (weights.double() * kept).sum()}
