"""Training: model + objective + optimizer, blind to how many processes and micro-batches there are.

`root` is what a parallel layout wraps: one module whose forward runs model, head and loss, because FSDP2 hands out whole
weights only within the root's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.core.batch import SURVEY
from llmfactory.core.context import Context, Record
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.steps import HIDDEN, Pass
from llmfactory.objective.objective import Objective, Outputs
from llmfactory.optim.groups import Rates, set_lr
from llmfactory.optim.narrow import NarrowWeights
from llmfactory.optim.spec import OptimSpec
from llmfactory.parallel.context import ContextCut, padded
from llmfactory.parallel.mesh import World
from llmfactory.parallel.shard import reshard
from llmfactory.precision.spec import Rounding
from llmfactory.stage.magnitudes import Magnitudes

if TYPE_CHECKING:
    from llmfactory.core.batch import Batch
    from llmfactory.stage.anchor.anchor import Anchor

Sums = dict[str, Tensor]
"""Terms of a loss by name, before they are divided."""


class Root(nn.Module):
    """Model, head and loss in one forward."""

    def __init__(self, model: Skeleton, objective: Objective, isolated: bool) -> None:
        super().__init__()
        self.model, self.objective, self.isolated = model, objective, isolated
        self.measure = objective.plain()
        self.multiple = 1
        """Rows are made as long as a multiple of it, by padding, so that a layout can cut them evenly."""
        self.cut: ContextCut | None = None
        """Cuts rows along their length, of which this process then has a piece; None: they stay whole."""

    def forward(
        self, batch: Batch, part: slice | None = None, carried: dict[str, Tensor] | None = None, survey: bool = False
    ) -> Sums | tuple[dict[str, Tensor], Sums]:
        """The sums of the loss's terms over a micro-batch; in evaluation mode those of the plain measure.

        `part`: of the model's steps only, which find `carried`. Then it returns what is carried after them, and the sums that came
        up on the way; after the last step nothing is carried, and the objective's sums are among them. `survey`: the sums that the
        objective needs of all micro-batches before it can say a loss (`Objective.survey`), by the name of their field.
        """
        if survey:
            batch, context = self._context(self.objective.surveyed(batch))
            return {SURVEY: self.objective.survey(self.model, batch, context)}
        record = Record() if self.training and self.model.terms else None
        objective = self.objective if self.training else self.measure
        batch, context = self._context(batch)
        context = context.with_(record=record)
        if part is None:
            outputs = objective.outputs(self.model, batch, context)
        else:
            steps = self.model.steps()
            going = Pass(batch["tokens"], context, dict(carried or {}))
            for step in steps[part]:
                step.run(going)
            if part.stop < len(steps):
                # No views: FSDP2 hangs its hooks on what a unit returns, and could lose them on a view.
                carried = {name: x if x._base is None else x.clone() for name, x in going.carried.items()}
                return carried, {} if record is None else record.sums
            outputs = Outputs(going.carried[HIDDEN], self.model.head, pieces=context.pieces)
        sums = {name: total for name, (total, _) in objective(outputs, batch).items()}
        sums |= {} if record is None else record.sums
        return sums if part is None else ({}, sums)

    def _context(self, batch: Batch) -> tuple[Batch, Context]:
        """The rows as the layout wants them, and what they mean to the model."""
        length = batch["tokens"].shape
        batch = padded(batch, self.multiple) if self.multiple > 1 else batch
        isolated = self.isolated or batch["tokens"].shape != length
        context = self.model.context(batch, isolated)
        return (batch, context) if self.cut is None else self.cut(batch, context)


class TrainingStage(pl.LightningModule):
    """Trains `model` on `objective`.

    `rates`: what its parameters learn at. `isolated`: rows hold several documents or padding, which attention must keep apart.
    `first_weights` fills the parameters of the model that it is given, once it is laid out over the processes of a world. Parameters
    named in `resting` do not learn in the first `resting_steps` steps. `anchor` holds weights near those that they began with.
    `rounding`: how steps reach weights that are kept in bfloat16, by random bits of `seed`; None: they are not.
    """

    def __init__(
        self,
        model: Skeleton,
        objective: Objective,
        optim: OptimSpec,
        *,
        rates: Rates,
        max_steps: int,
        isolated: bool,
        first_weights: Callable[[Skeleton, World], None] = lambda model, world: None,
        after_step: Callable[[Skeleton, int, Tensor], None] = lambda model, step, taken: None,
        resting: Collection[str] = (),
        resting_steps: int = 0,
        anchor: Anchor | None = None,
        rounding: Rounding | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.anchor, self.rounding, self.seed = anchor, rounding, seed
        self.root = Root(model, objective, isolated)
        self.first_weights, self.after_step = first_weights, after_step
        self.resting, self.resting_steps = frozenset(resting), resting_steps
        self.objective, self.optim, self.rates = objective, optim, rates
        self.schedule = optim.schedule.build(max_steps)
        self.average = optim.averaging(max_steps)
        self.clip_norm, self.clip_value = optim.clip_norm, optim.clip_value
        self.lr_factor: Callable[[int], float] = lambda step: 1.0
        """What the learning rate of a step is multiplied by besides: a guard may lower it for a while."""
        self.watched, self.surveys = objective.watched, objective.surveys
        self.magnitudes: Magnitudes | None = None
        """Who measures gradients and steps part by part; None: nobody."""

    @property
    def model(self) -> Skeleton:
        return self.root.model

    def fill(self, world: World) -> None:
        """Give the parameters, which have been laid out over `world`, their first values; called by every process."""
        self.first_weights(self.model, world)

    def rest(self, step: int) -> None:
        """Drop the gradients of what does not learn in a step, counted from 0: the optimizer passes over what has none."""
        if step < self.resting_steps:
            for name, parameter in self.model.named_parameters():
                if name in self.resting:
                    parameter.grad = None

    def pull(self, scale: Tensor | None) -> None:
        """Add to the step's gradients those of penalties on the weights themselves; `scale`: the loss was multiplied by it."""
        if self.anchor is not None:
            self.anchor.pull(self.model, scale)
        if self.magnitudes is not None:
            self.magnitudes.before(self.model, self.trainer.global_step, scale)

    def penalties(self, world: World) -> dict[str, float]:
        """What these penalties are now, beside the loss; called by every process."""
        return {} if self.anchor is None else {"anchor_penalty": self.anchor.penalty(self.model, world)}

    def stepped(self, step: int, taken: Tensor) -> None:
        """What the method of training has to do after a step, counted from 0; `taken`: it reached the weights."""
        if self.magnitudes is not None:
            self.magnitudes.after(self.model)
        self.after_step(self.model, step, taken)
        if self.average is not None:
            self.average.update(step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """With the weights that are used in the model's place, where they are not those that are trained."""
        if self.average is None:
            yield
            return
        reshard(self.root)  # whole weights of the last forward would go on being used
        with self.average.used():
            yield
            reshard(self.root)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.optim.lr * self.schedule(step) * self.lr_factor(step)

    def count(self, batch: Batch) -> dict[str, float]:
        denominators = {name: value.item() for name, value in self.objective.denominators(batch).items()}
        tokens = float(sum((batch[name] > 0).sum().item() for name in ("segments", "source_segments") if name in batch))
        return {**denominators, **self.model.term_tokens(batch), "tokens": tokens}

    def configure_optimizers(self) -> Optimizer:
        found = self.rates.groups(self.model.named_parameters())
        if not found:  # a stage of a pipeline, all of which is frozen
            found = [{"params": [nn.Parameter(torch.zeros((), device=self.device))]}]
        optimizer = self.optim.build(found)
        if self.rounding is None:
            return optimizer
        return NarrowWeights(optimizer, self.rounding, {one: name for name, one in self.model.named_parameters()}, self.seed)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        set_lr(optimizer, self.lr_at(self.trainer.global_step))
        if isinstance(optimizer, NarrowWeights):
            optimizer.at = self.trainer.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """The strategy makes the step; Lightning only asks that this method exists."""
        raise RuntimeError("a training stage runs under MeshStrategy")

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Nothing: Lightning calls this between training_step and backward, when the gradients are there already."""
