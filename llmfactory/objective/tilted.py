"""Next tokens of several sources, tilted towards those with the higher loss (Li et al. 2021, Tilted Empirical Risk Minimization).

    R = 1 / t log( 1 / K sum_k exp(t L_k) ),     grad R = sum_k w_k grad L_k,     w_k = exp(t L_k) / sum_j exp(t L_j)

L_k is the mean loss of source k in an optimizer step, over those K that have a target in it. The weights are constants of the step: a
pass without gradients over all of its rows sums the losses up before the first backward pass, so that they depend neither on
micro-batches nor on processes. What is reported as the loss is sum_k w_k L_k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE, SURVEY
from llmfactory.data.pack.rows import Drawn, Int64, Rows
from llmfactory.model.skeleton import Skeleton
from llmfactory.objective.answers import still
from llmfactory.objective.causal import CausalObjective
from llmfactory.objective.objective import Outputs, Terms
from llmfactory.objective.spec import Causal
from llmfactory.objective.task_spec import Tilted

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.core.context import Context

TASK = "task"
"""The field with the number of a row's source."""


class TiltedObjective(CausalObjective):
    surveys = True

    def __init__(self, spec: Tilted, sources: tuple[str, ...]) -> None:
        CausalObjective.__init__(self, Causal(label_smoothing=spec.label_smoothing))
        self.tilt, self.sources = spec.tilt, sources
        self.watched = tuple(f"weight/{name}" for name in sources)

    def rows(self, rows: Rows) -> Rows:
        return SourcedRows(rows, self.sources) if self.sources else rows

    @torch.no_grad()
    def survey(self, model: Skeleton, batch: Batch, context: Context) -> Tensor:
        """[2 K]: of each source the sum of losses, and the number of targets."""
        with still(model):
            outputs = self.outputs(model, batch, context)
        labels_BT, task_B = batch["labels"], batch[TASK]
        losses, counts = [], []
        for number in range(len(self.sources)):
            own_B = task_B == number
            losses.append(
                outputs.head.cross_entropy(outputs.hidden[own_B], labels_BT[own_B], None, self.label_smoothing).double()
            )
            counts.append((labels_BT[own_B] != IGNORE).sum().double())
        return torch.stack([*losses, *counts])

    def __call__(self, outputs: Outputs, batch: Batch) -> Terms:
        labels_BT, task_B = batch["labels"], batch[TASK]
        weight_K, count_K = self.weights(batch[SURVEY][0])
        factor_K = weight_K * count_K.sum() / count_K.clamp_min(1)  # of a sum that is divided by all targets
        factors_BT = (
            factor_K[task_B][:, None].expand(labels_BT.shape).to(torch.promote_types(outputs.hidden.dtype, torch.float32))
        )
        total = outputs.head.cross_entropy(outputs.hidden, labels_BT, factors_BT, self.label_smoothing)
        counts = self.denominators(batch)
        found = {"loss": (total, counts["loss"])}
        for name, weight in zip(self.watched, weight_K, strict=True):
            found[name] = weight.to(total.dtype) * counts[name], counts[name]
        return found

    def weights(self, survey: Tensor) -> tuple[Tensor, Tensor]:
        """[K] each: w, and the number of targets in the step."""
        loss_K, count_K = survey.view(2, -1).unbind(0)
        tilted_K = self.tilt * loss_K / count_K.clamp_min(1)
        return tilted_K.masked_fill(count_K == 0, -torch.inf).softmax(0), count_K

    def denominators(self, batch: Batch) -> dict[str, Tensor]:
        return dict.fromkeys((*self.terms, *self.watched), (batch["labels"] != IGNORE).sum())


class SourcedRows(Rows):
    """The rows of a mixture, with the number of each one's source among `names`."""

    def __init__(self, rows: Rows, names: Sequence[str]) -> None:
        self.inner, self.file, self.seq_len, self.isolated, self.ragged = (
            rows,
            rows.file,
            rows.seq_len,
            rows.isolated,
            rows.ragged,
        )
        self.last_S = np.cumsum([len(part) for part in rows.sources.values()])
        self.number_S = np.array([names.index(name) for name in rows.sources], np.int64)

    def __len__(self) -> int:
        return len(self.inner)

    @property
    def sources(self) -> Mapping[str, Rows]:
        return self.inner.sources

    @property
    def targets(self) -> int:
        return self.inner.targets

    def order(self, seed: int) -> Drawn:
        return self.inner.order(seed)

    def documents(self, row: int) -> list[int]:
        return self.inner.documents(row)

    def width(self, indices: Int64) -> int:
        return self.inner.width(indices)

    def read(self, indices: Int64) -> Batch:
        return self._told(self.inner.read(indices), indices)

    def draw(self, indices: Int64, samples: Int64) -> Batch:
        return self._told(self.inner.draw(indices, samples), indices)

    def _told(self, batch: Batch, indices: Int64) -> Batch:
        return {**batch, TASK: torch.from_numpy(self.number_S[self.last_S.searchsorted(indices, side="right")])}
