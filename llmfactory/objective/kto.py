"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, equations 7 and 8).

    r = log p(y | x) - log q(y | x)
    z = max(0, mean over the step's rows of log p(y' | x) - log q(y' | x)),     y' the answer to another prompt
    loss = w_D (1 - sigmoid(beta (r - z))) of an answer that is wanted, w_U (1 - sigmoid(beta (z - r))) of one that is not

z estimates how far the model has gone from the reference, KL(p || q), and is taken as a constant. It is a statistic of the whole
optimizer step: a pass without gradients over all of its rows sums it up before the first backward pass (`survey`), so that the loss
depends neither on micro-batches nor on processes. Over held-out rows it is that of all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE, SURVEY
from llmfactory.data.form.mismatched import OTHER, MismatchedRows
from llmfactory.objective.answers import AnswersObjective, log_probs, share, still
from llmfactory.objective.objective import Outputs, Terms
from llmfactory.objective.preference_spec import Kto, Reference

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.core.context import Context
    from llmfactory.data.pack.rows import Rows
    from llmfactory.model.skeleton import Skeleton

KINDS = ("wanted", "unwanted")
WATCHED = ("reward", "logp")
"""Of either kind."""


class KtoObjective(AnswersObjective):
    terms = ("loss",)
    unit = "of 1 per answer"
    watched = ("kl", *(f"{name}_{kind}" for kind in KINDS for name in WATCHED))
    surveys = True

    def __init__(self, spec: Kto, reference: Reference) -> None:
        AnswersObjective.__init__(self, reference)
        self.spec = spec

    def rows(self, rows: Rows) -> Rows:
        return MismatchedRows(rows) if len(rows) else rows

    def answers(self, batch: Batch) -> int:
        return 1

    def asked(self, batch: Batch) -> list[tuple[Batch, int]]:
        return [(batch, 1), (self.surveyed(batch), 1)]

    def surveyed(self, batch: Batch) -> Batch:
        """The mismatched answers as rows of their own."""
        found = {name.removeprefix(OTHER): field for name, field in batch.items() if name.startswith(OTHER)}
        return found | ({"reference_logps": batch["reference_logps"][:, 1:]} if "reference_logps" in batch else {})

    @torch.no_grad()
    def survey(self, model: Skeleton, batch: Batch, context: Context) -> Tensor:
        """[2]: the sum of log-ratios over rows, and the number of rows."""
        with still(model):
            outputs = self.outputs(model, batch, context)
        known_B1, logps_B1 = self.compared_with(outputs, batch), log_probs(outputs, batch, 1)
        assert known_B1 is not None
        there_B = _there(batch, outputs).to(logps_B1.dtype)
        ratios_B = (logps_B1 - known_B1)[:, 0]
        return torch.stack(((ratios_B * there_B).sum(), there_B.sum())) * share(outputs)

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        logps_B, known_B1 = log_probs(outputs, batch, 1)[:, 0], self.compared_with(outputs, batch)
        assert known_B1 is not None
        ratios_B = logps_B - known_B1[:, 0].to(logps_B.dtype)
        gap_B, rows_B = batch[SURVEY].to(logps_B.dtype).unbind(1)
        kl_B = (gap_B / rows_B.clamp(min=1)).clamp(min=0)
        wanted_B = batch["label"] > 0
        sign_B = wanted_B.to(logps_B.dtype) * 2 - 1
        weight_B = torch.where(wanted_B, logps_B.new_tensor(self.spec.wanted), logps_B.new_tensor(self.spec.unwanted))
        part_B = _there(batch, outputs).to(logps_B.dtype) * share(outputs)
        loss_B = weight_B * torch.sigmoid(-sign_B * self.spec.beta * (ratios_B - kl_B))
        sums = {"loss": (loss_B * part_B).sum(), "kl": (kl_B * part_B).sum()}
        for kind, those_B in zip(KINDS, (wanted_B, ~wanted_B), strict=True):
            sums[f"reward_{kind}"] = (self.spec.beta * ratios_B.detach() * part_B * those_B).sum()
            sums[f"logp_{kind}"] = (logps_B.detach() * part_B * those_B).sum()
        counts = self.denominators(batch)
        return {name: (total, counts[name]) for name, total in sums.items()}

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        there_B, wanted_B = (batch["labels"] != IGNORE).any(1), batch["label"] > 0
        found = {"loss": there_B.sum(), "kl": there_B.sum()}
        for kind, those_B in zip(KINDS, (wanted_B, ~wanted_B), strict=True):
            found |= dict.fromkeys((f"reward_{kind}", f"logp_{kind}"), (there_B & those_B).sum())
        return found


def _there(batch: Batch, outputs: Outputs) -> Tensor:
    """[B], whether a row has an answer, on some process."""
    kept_B = (batch["labels"] != IGNORE).any(1)
    return kept_B if outputs.pieces is None else outputs.pieces.total(kept_B.double()) > 0
