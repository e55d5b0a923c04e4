"""Weights of a mixture found by a small model (DoReMi, Xie et al. 2023, section 2 and algorithm 1).

A reference model is trained on the mixture as it is. Then a proxy model is trained by group-DRO: at each step, the excess loss of
source i, per token and never below 0, is

    lambda_i = 1 / |D_i| sum_{x in D_i} sum_j max(l_proxy(x_j) - l_reference(x_j), 0)

over the rows D_i of the batch, which is drawn from all sources alike, and

    alpha'  = alpha_{t-1} exp(step_size lambda),   alpha_t = (1 - smoothing) alpha' / sum alpha' + smoothing / k

weighs the sources in the proxy's loss, sum_i alpha_i (mean loss on D_i). The weights found are the mean of alpha over the steps.
A source that the batch happens to lack keeps the excess that it had last, as in the authors' code.

Not all of a source that is noise has a low weight: what counts is how much is still to be learned, so that noise (where reference
and proxy are equally bad) and what is known (where both are good) both give way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llmfactory.config.plain import to_plain
from llmfactory.config.spec import Job
from llmfactory.core.batch import IGNORE, split
from llmfactory.core.errors import UserError
from llmfactory.core.sizes import Sizes
from llmfactory.data.loader import StepLoader
from llmfactory.data.mix.mixed_rows import MixedRows
from llmfactory.data.mix.spec import Fixed
from llmfactory.data.prepared import Prepared
from llmfactory.model.initialize import initialize
from llmfactory.model.skeleton import Skeleton
from llmfactory.objective.spec import Causal
from llmfactory.optim.groups import set_lr
from llmfactory.parallel.clip import bound_, clip_factor, global_norm, scale_
from llmfactory.parallel.mesh import device_type
from llmfactory.stage.job import StageJob
from llmfactory.stage.rates import rates
from llmfactory.stage.rows import packed_rows, read_data
from llmfactory.stage.spec import Reweight
from llmfactory.tracking.tracker import Tracker

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch

Float64 = NDArray[np.float64]
WEIGHTS = "weights.json"


def updated(weights_S: Float64, excess_S: Float64, step_size: float, smoothing: float) -> Float64:
    """The weights after a step, by exponentiated gradient ascent."""
    logs_S = np.log(weights_S) + step_size * excess_S
    found_S: Float64 = np.exp(logs_S - logs_S.max())
    return (1 - smoothing) * found_S / found_S.sum() + smoothing / len(found_S)  # type: ignore[no-any-return]


class ReweightJob(StageJob):
    """In a single process. `metrics.csv` follows both trainings, the proxy's steps counted on from those of the reference."""

    def __init__(self, spec: Reweight) -> None:
        self.spec = spec

    def run(self, job: Job, folder: Path | None) -> dict[str, Any]:
        assert folder is not None  # this stage keeps one
        data = read_data(job, None, ())
        assert isinstance(data, Prepared)
        mixed = packed_rows(job, data, "train", job.data.seq_len)
        assert isinstance(mixed, MixedRows)
        torch.manual_seed(job.seed)
        steps, size = job.trainer.max_steps, job.trainer.batch_size
        tracker = job.tracking.build(folder, to_plain(job))
        reference = _Learner(job, mixed.isolated)
        for step, (batch, _) in enumerate(_batches(mixed, job), 1):
            loss = reference.step(step, batch, torch.ones_like(batch["labels"], dtype=torch.float32))
            _log(tracker, job, step, {"loss": loss})
        alike = MixedRows(mixed.sources, Fixed(max_epochs=mixed.spec.max_epochs), steps, Sizes([(0, size)]))
        names, proxy = list(mixed.sources), _Learner(job, mixed.isolated)
        search = Search(self.spec, len(names))
        for step, (batch, source_B) in enumerate(_batches(alike, job), 1):
            token_weights = search.weigh(batch, source_B, lambda part: _excess(proxy, reference, part), job)
            loss = proxy.step(step, batch, token_weights)
            shown = {f"weights/{name}": weight for name, weight in zip(names, search.weights_S.tolist(), strict=True)}
            _log(tracker, job, step, {"loss": loss, **shown}, steps)
        found = dict(zip(names, search.mean_S.tolist(), strict=True))
        baseline = StepLoader(mixed, batch_size=size, seed=job.seed).drawn(steps)
        drawn = {name: baseline[f"tokens/{name}"] for name in names}
        shares = {name: tokens / sum(drawn.values()) for name, tokens in drawn.items()}
        _write(folder / WEIGHTS, {"weights": found, "baseline": shares, "steps": steps, "data": data.name})
        tracker.finish({f"weights/{name}": weight for name, weight in found.items()})
        return {
            "data": data.name,
            "weights_file": str(folder / WEIGHTS),
            **{f"weights/{name}": weight for name, weight in found.items()},
            **{f"baseline/{name}": share for name, share in shares.items()},
            **{f"excess_loss/{name}": excess for name, excess in zip(names, search.mean_excess_S.tolist(), strict=True)},
        }


class Search:
    """The weights of S sources on their way."""

    def __init__(self, spec: Reweight, sources: int) -> None:
        self.spec, self.steps = spec, 0
        self.weights_S: Float64 = np.full(sources, 1 / sources)
        self.excess_S: Float64 = np.full(sources, np.nan)
        """Of each source when it was last seen; not a number before that."""
        self._sum_S, self._excess_sum_S = np.zeros(sources), np.zeros(sources)

    @property
    def mean_S(self) -> Float64:
        """Of the weights over all steps."""
        return self._sum_S / self.steps

    @property
    def mean_excess_S(self) -> Float64:
        return self._excess_sum_S / self.steps

    def weigh(self, batch: Batch, source_B: Tensor, excess: Callable[[Batch], Tensor], job: Job) -> Tensor:
        """A step: weights [B, T] of the batch's tokens in the proxy's loss. `excess`: of each token of some rows."""
        parts = [excess(part) for part in split(batch, job.trainer.micro_batch_size)]
        total_B = torch.cat([part.double().sum(1) for part in parts])
        count_B = (batch["labels"] != IGNORE).sum(1)
        S = len(self.weights_S)
        total_S, count_S = (
            torch.zeros(S, dtype=torch.float64).index_add(0, source_B, one.double().cpu()) for one in (total_B, count_B)
        )
        seen_S = (count_S > 0).numpy()
        self.excess_S[seen_S] = (total_S / count_S).numpy()[seen_S]
        known_S = np.where(np.isnan(self.excess_S), np.nanmean(self.excess_S), self.excess_S)
        self.weights_S = updated(self.weights_S, known_S, self.spec.step_size, self.spec.smoothing)
        self._sum_S += self.weights_S
        self._excess_sum_S += known_S
        self.steps += 1
        row_B = (torch.from_numpy(self.weights_S) / count_S)[source_B]
        return row_B[:, None].expand(batch["labels"].shape).float().to(batch["labels"].device)


class _Learner:
    """A model of the job with its optimizer."""

    def __init__(self, job: Job, isolated: bool) -> None:
        self.job, self.isolated = job, isolated
        self.device = torch.device(device_type(job.trainer.device))
        self.objective = Causal().build()
        self.model: Skeleton = job.model.build()
        declared = job.optim.width.declared(self.model, job.model)
        initialize(self.model, job.seed, declared=declared)
        self.model.to(self.device).train()
        self.optimizer = job.optim.build(rates(self.model, job.optim, declared).groups(self.model.named_parameters()))
        self.schedule = job.optim.schedule.build(job.trainer.max_steps)

    def step(self, number: int, batch: Batch, weights_BT: Tensor) -> float:
        """Optimizer step `number`, from 1. The loss: sum w l / sum w over the tokens that have a label."""
        kept = batch["labels"] != IGNORE
        weights_BT = weights_BT.to(self.device) / (weights_BT.to(self.device) * kept).sum()
        loss = 0.0
        for part in split({**batch, "weights": weights_BT}, self.job.trainer.micro_batch_size):
            outputs = self.objective.outputs(self.model, part, self.model.context(part, self.isolated))
            total, _ = self.objective(outputs, part)["loss"]
            total.backward()  # type: ignore[no-untyped-call]
            loss += total.item()
        gradients = [one.grad for one in self.model.parameters() if one.grad is not None]
        norm = global_norm(gradients)
        if not torch.isfinite(norm):
            raise UserError(f"step {number} has gradients that are not finite: try a smaller optim.lr than {self.job.optim.lr}")
        scale_(gradients, clip_factor(norm, self.job.optim.clip_norm))
        if self.job.optim.clip_value is not None:
            bound_(gradients, self.job.optim.clip_value)
        set_lr(self.optimizer, self.job.optim.lr * self.schedule(number - 1))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    @torch.no_grad()
    def losses(self, batch: Batch) -> Tensor:
        """[B, T], 0 where there is no label; dropout is off."""
        self.model.eval()
        logits = self.model.head(self.model(batch["tokens"], self.model.context(batch, self.isolated)))
        self.model.train()
        return F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), reduction="none").view_as(batch["labels"])


def _excess(proxy: _Learner, reference: _Learner, batch: Batch) -> Tensor:
    return (proxy.losses(batch) - reference.losses(batch)).clamp(min=0.0)


def _batches(rows: MixedRows, job: Job) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of a training with the source of each row."""
    device = torch.device(device_type(job.trainer.device))
    loader = StepLoader(rows, batch_size=job.trainer.batch_size, seed=job.seed)
    for step, batch in zip(range(job.trainer.max_steps), loader, strict=False):
        source_B = torch.from_numpy(rows.last_S.searchsorted(loader.sample_ids(step), side="right"))
        yield {name: field.to(device) for name, field in batch.items()}, source_B


def _log(tracker: Tracker, job: Job, step: int, metrics: dict[str, float], before: int = 0) -> None:
    if step == 1 or step % job.trainer.log_every == 0 or step == job.trainer.max_steps:
        tracker.log(before + step, metrics)


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
