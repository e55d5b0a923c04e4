"""The one Lightning strategy. It is thin: what it does stands in functions of this package that know no Lightning.

One Lightning batch is this process's share of one optimizer step. Before its copy to the device, the denominators of the loss
are counted and added up over all processes; then the share goes through the model in micro-batches, each of which
back-propagates sum / denominator. So loss and gradients depend neither on the micro-batch size nor on the number of processes.
Then one pass over the gradients unscales and clips them, and the optimizer steps.

The model is laid out in this order: tensors and experts are cut, blocks recompute, modules are compiled, FSDP2 wraps what is
there, the pieces get memory and are filled, the optimizer gets them. Until then parameters are on the meta device: a process
never holds more than its pieces.

A step whose loss or gradient norm is not finite never reaches the weights. On the CPU that is decided at once. A GPU would have
to be waited for, so there the decision stays on it: the optimizer's kernel takes a flag and leaves the weights alone, and
`check` (called when metrics are read anyway) ends the run. Where there is a guard, it has the verdict, also on steps that are
finite, and whoever asks it decides what becomes of the run. All processes judge by the numbers of the first one.

Lightning runs training_step, then zero_grad, then backward; the first has done the backward pass here, so the second must do
nothing (the stage's `optimizer_zero_grad`) and so must the third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.core.batch import SURVEY, split
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import name_seed
from llmfactory.kernel.linear import quicken
from llmfactory.parallel.clip import bound_, clip_factor, global_norm, scale_
from llmfactory.parallel.compiling import compile_blocks
from llmfactory.parallel.context import ContextCut
from llmfactory.parallel.drawing import seed_generators
from llmfactory.parallel.expert import deal_experts
from llmfactory.parallel.in_backward import InBackward
from llmfactory.parallel.mesh import World
from llmfactory.parallel.offload import keep_on_disk, memory_in
from llmfactory.parallel.pipeline import Pipeline
from llmfactory.parallel.place import Place
from llmfactory.parallel.recompute import recompute
from llmfactory.parallel.shard import add_gradients_in, next_micro_batch, shard
from llmfactory.parallel.spec import Mesh, Offload, Schedule, TensorForm
from llmfactory.parallel.stages import Stages
from llmfactory.parallel.summa import cut_on_grid, own_rows_of
from llmfactory.parallel.survey import surveyed
from llmfactory.parallel.tensor import cut_rows, cut_tensors, towers
from llmfactory.parallel.trainable import Formats, Judge, Trainable
from llmfactory.parallel.weights import allocate

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from llmfactory.core.batch import Batch


class MeshStrategy(ParallelStrategy):
    """Every parallel layout. `samples` names the samples of a step (from 0), for the message when one of them is broken; `rows`: how
    many it has, over all processes."""

    def __init__(
        self,
        world: World,
        layout: Mesh,
        *,
        seed: int,
        rows: Callable[[int], int] | None = None,
        micro_batch_size: int | None = None,
        samples: Callable[[int], str] = lambda step: "unknown",
        smallest_scale: float = 0.0,
        compile: bool = False,
        scratch: Path | None = None,
        in_backward: bool = False,
    ) -> None:
        super().__init__(parallel_devices=[world.device], cluster_environment=Place(world))
        self.world, self.layout, self.seed, self.samples = world, layout, seed, samples
        self.rows, self.micro_batch_size = rows, micro_batch_size
        self.smallest_scale, self.compile, self.scratch = smallest_scale, compile, scratch
        self._on_disk, self._in_backward = False, in_backward
        self.in_backward: InBackward | None = None
        """Who steps parameters while the backward pass goes on; None: the optimizer does, at its end."""
        self.begins: Callable[[str], None] = lambda phase: None  # told which phase of a step does (run/phases.py)
        self.stop_asked = False
        """Set by a signal handler of this process: stop after the current step."""
        self.stop_agreed = False
        """Some process was asked to stop before this step began; the same on all of them."""
        self.tokens = 0.0
        """Tokens of the current step, over all processes."""
        self.loss = self.norm = torch.zeros(())
        """Loss and gradient norm (before clipping) of the last step, over all processes."""
        self.pipeline: Pipeline | None = None
        """Who goes through the micro-batches where layers are dealt to several processes."""
        self.guard: Judge | None = None
        """Who judges steps; None: one that is not finite ends the run."""
        self._denominators: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        """Of each term of the current step's loss, and of what is watched, this process's part."""
        self._broken: Tensor | None = None

    # ---- set-up

    @property
    def root_device(self) -> torch.device:
        return self.world.device

    @property
    def stage(self) -> Trainable:
        return cast(Trainable, self.lightning_module)

    @property
    def formats(self) -> Formats:
        return cast(Formats, self.precision_plugin)

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        root, layout, dense = self.stage.root, self.layout, self.world.dense
        stages = Stages(self.stage.model, self.world, layout) if "pp" in self.world.groups else None
        if dense is not None:
            self._cut(root)
        if stages is not None:
            stages.drop()
        if layout.pp == 1 or layout.schedule not in (Schedule.zero_bubble, Schedule.zero_bubble_v):
            quicken(root)  # zero bubble takes the backward pass of a linear map apart, which has to be torch's own
        if layout.recompute:
            recompute(root, layout)
        if self.compile:
            compile_blocks(root, self.world)
        if dense is not None:
            sparse = self.world.sparse
            experts = None if sparse is None else sparse["copies", "shards"]
            sums, data = self.formats.gradients, dense["copies", "shards"]
            shard(root, data, layout.zero, experts=experts, offload=layout.offload, gradients=sums)
        if stages is not None:
            self.pipeline = Pipeline(root, stages, layout, self.formats)
        self.fill(root)
        if self.formats.gradients is not None:
            add_gradients_in(root, self.formats.gradients)
        self.setup_optimizers(trainer)
        self.in_backward = InBackward(self.optimizers[0]) if self._in_backward else None

    def fill(self, root: nn.Module) -> None:
        """Memory for the parameters of the laid out model, and their first values."""
        offload, memory = self.layout.offload, None
        if offload is Offload.disk:
            assert self.scratch is not None
            memory = memory_in(self.scratch)
        allocate(root, self.world.device if offload is Offload.none else torch.device("cpu"), memory)
        self.stage.fill(self.world)

    def _cut(self, root: nn.Module) -> None:
        """Tensor, sequence, expert and context parallelism."""
        layout, world = self.layout, self.world
        if layout.tensor_form is TensorForm.summa:
            cut_on_grid(root, world, loss=layout.loss_parallel)
            return
        cut_tensors(root, world, sequence=layout.sequence_parallel, loss=layout.loss_parallel)
        deal_experts(root, world)
        if layout.sequence_parallel and "tp" in world.groups:
            self.stage.root.multiple *= world.groups["tp"].size()
            for tower in towers(root):
                tower.cut, tower.join = cut_rows(world)
        if "cp" in world.groups:
            self.stage.root.multiple *= 2 * world.groups["cp"].size()
            self.stage.root.cut = ContextCut(world.groups["cp"], layout.context_method)

    def model_to_device(self) -> None:
        assert self.lightning_module is not None
        self.formats.convert_module(self.lightning_module)
        if not any(parameter.is_meta for parameter in self.lightning_module.parameters()):
            self.lightning_module.to(self.world.device)

    def teardown(self) -> None:
        """Weights stay where they are: `fit` still evaluates with them."""

    # ---- the step

    def batch_to_device(self, batch: Batch, device: torch.device | None = None, dataloader_idx: int = 0) -> Batch:
        counts = self.stage.count(batch)
        mine = counts.values() if self.world.counts else [0.0] * len(counts)
        *totals, asked = self.world.sum_numbers([*mine, float(self.stop_asked)])
        self._denominators = dict(zip(counts, totals, strict=True))
        self.tokens = self._denominators.pop("tokens")
        self.stop_agreed = asked > 0
        return {name: field.to(self.world.device, non_blocking=True) for name, field in batch.items()}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Forward and backward of all micro-batches; returns this process's part of the loss, detached."""
        root = self.stage.root
        seed_generators(name_seed(self.seed, f"step {self._step} rank {self._draws}"), self.world.device)
        pieces = list(self._pieces(batch))
        pieces = surveyed(pieces, self.survey, self.world) if self.stage.surveys else pieces
        self._sums = {}
        if self.pipeline is not None:
            rows, shares = [self._own_rows(piece) for piece, _ in pieces], [share for _, share in pieces]
            return self.pipeline.step(rows, lambda number, sums: self._loss(sums, shares[number]))
        total: Tensor | None = None
        for number, (piece, share) in enumerate(pieces, start=1):
            next_micro_batch(root, number == len(pieces), self.layout.zero)
            self.begins("forward")
            with self.formats.forward_context():
                loss = self._loss(root(self._own_rows(piece)), share)
            self.begins("backward")
            if self.in_backward is not None and not loss.isfinite():
                self._stop(self._step + 1, loss.item(), math.nan)
            torch.autograd.backward(self.formats.scaled(loss))
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def survey(self, batch: Batch) -> Tensor:
        """Of a micro-batch, this process's part of the sums that the objective must know of all of them before it can say a loss."""
        with self.formats.forward_context():
            return cast(Tensor, self.stage.root(self._own_rows(batch), survey=True)[SURVEY])

    def _loss(self, sums: Mapping[str, Tensor], share: float) -> Tensor:
        """Of the step's loss, what these sums of its terms are, of which a share counts here."""
        if len(sums) > 1:
            for name, total in sums.items():
                part = share * total.detach()
                self._sums[name] = self._sums[name] + part if name in self._sums else part
        watched = self.stage.watched
        loss = sum(total / (self._denominators[name] or 1.0) for name, total in sums.items() if name not in watched)
        assert isinstance(loss, Tensor)
        return share * loss

    def measures(self) -> dict[str, float]:
        """Terms of the last step's loss by name, and what is watched beside them, where there is more than the loss itself. Called
        by every process; waits for the device."""
        if len(self._denominators) < 2:
            return {}
        parts = [float(self._sums.get(name, 0.0)) for name in self._denominators]
        totals = zip(self._denominators.items(), self.world.sum_numbers(parts), strict=True)
        return {name: total / count for (name, count), total in totals if count}

    def _pieces(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Micro-batches, and how much the loss of each counts here. All processes go through as many, since their collective
        operations must meet: one with fewer rows repeats a micro-batch that counts nothing."""
        pieces = list(split(batch, self.micro_batch_size))
        yield from ((piece, self.share) for piece in pieces)
        if self.rows is not None and self.micro_batch_size is not None:
            most = -(-self.rows(self._step) // self.world.data_size)
            yield from [(pieces[0], 0.0)] * (-(-most // self.micro_batch_size) - len(pieces))

    def _own_rows(self, batch: Batch) -> Batch:
        """Of rows that the tensor-parallel processes have in common, those that this one works on."""
        return own_rows_of(batch, self.world) if self.layout.tensor_form is TensorForm.summa else batch

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of the terms over a batch of held-out rows; over all processes they add up to those of all their rows."""
        run = self.stage.root if self.pipeline is None else self.pipeline.evaluate
        with self.formats.forward_context():
            return {name: self.share * value for name, value in run(self._own_rows(batch)).items()}

    @property
    def share(self) -> float:
        """Of a loss that this process computes from whole logits, together with all its tensor-parallel neighbours."""
        copies = self.world.degrees["tp"]
        return 1.0 / (copies if self.layout.tensor_form is TensorForm.one_d else math.isqrt(copies))

    @property
    def _draws(self) -> str:
        """Processes that run the same layers on the same tokens draw the same dropout masks, all others their own."""
        world = self.world
        apart = self.layout.sequence_parallel or self.layout.tensor_form is TensorForm.summa
        places = {"pp": world.place("pp"), "cp": world.place("cp"), "tp": world.place("tp") if apart else 0}
        return str(world.data_rank) + "".join(f" {axis} {place}" for axis, place in places.items() if place)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Nothing: `training_step` has done it."""
        return closure_loss

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: pl.LightningModule | nn.Module | None = None, **kwargs: Any
    ) -> Tensor:
        self.loss = self.world.sum_tensor(closure())
        self.stage.rest(self._step)
        if self.layout.offload is Offload.disk and not self._on_disk:  # a resumed run has its state by now
            assert self.scratch is not None
            keep_on_disk(optimizer, self.scratch)
            self._on_disk = True
        scale = self.formats.loss_scale
        self.stage.pull(None if scale is None else scale.value)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.in_backward is not None:
            raw_norm = self.in_backward.finish()
        else:
            raw_norm = global_norm(gradients) if self.pipeline is None else self.pipeline.norm()
        self.norm = raw_norm if scale is None else raw_norm / scale.value
        if self.guard is not None:  # a last digit that differs must not make processes decide differently
            self.loss, self.norm = self.world.first_of(self.loss), self.world.first_of(self.norm)
        broken, overflow = ~self.loss.isfinite(), ~self.norm.isfinite()
        if scale is None:
            broken, overflow = broken | overflow, torch.zeros_like(overflow)
        else:
            broken = broken | (scale.value < self.smallest_scale)
        factor, held = clip_factor(self.norm, self.stage.clip_norm), broken
        if self.guard is not None:
            held, most = self.guard.judge(self._step + 1, self.loss, self.norm, broken, overflow)
            factor = factor if most is None else torch.minimum(factor, clip_factor(self.norm, most))
        if scale is not None:
            factor = factor / scale.value
        if self._defers(optimizer):
            if self.guard is None:
                self._remember(broken)
            scale_(gradients, factor)
            self._bound(gradients)
            optimizer.found_inf = (held | overflow).float()  # type: ignore[attr-defined]
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.step()
        else:
            if self.guard is None and broken:
                self._stop(self._step + 1, self.loss.item(), self.norm.item())
            if not (held | overflow):
                if factor != 1.0:
                    scale_(gradients, factor)
                self._bound(gradients)
                if self.in_backward is None:
                    optimizer.step()
        self.stage.stepped(self._step, ~(held | overflow))
        if scale is not None:
            scale.update(overflow)
        optimizer.zero_grad()
        self.begins("framework")
        return self.loss

    def _bound(self, gradients: list[Tensor]) -> None:
        if self.stage.clip_value is not None:
            bound_(gradients, self.stage.clip_value)

    @property
    def _step(self) -> int:
        assert self.lightning_module is not None
        return self.lightning_module.trainer.global_step

    def _defers(self, optimizer: Optimizer) -> bool:
        """Whether the step's verdict stays on the device: not on the CPU, and only if the optimizer's kernel takes a flag."""
        offloaded = self.layout.offload is not Offload.none
        at_the_end = not offloaded and self.in_backward is None
        return self.world.device.type != "cpu" and at_the_end and getattr(optimizer, "_step_supports_amp_scaling", False)

    def _remember(self, broken: Tensor) -> None:
        """Keep the first broken step as [its number from 1, loss, norm] on the device; the number is 0 as long as there is none."""
        now = torch.stack([broken * float(self._step + 1), self.loss.float(), self.norm.float()])
        self._broken = now if self._broken is None else torch.where(self._broken[0] > 0, self._broken, now)

    def check(self) -> None:
        """End the run if a step since the start had a non-finite loss or gradient. Waits for the device."""
        if self._broken is not None:
            step, loss, norm = self._broken.tolist()
            if step:
                self._stop(int(step), loss, norm)

    def _stop(self, step: int, loss: float, norm: float) -> NoReturn:
        raise UserError(
            f"step {step}: the loss is {loss:g} and the gradient norm {norm:g}; the step did not reach the weights and the run "
            f"ends here. Its samples: {self.samples(step - 1)}. Try a lower optim.lr or a longer optim.schedule.warmup_steps, "
            f"or look at these samples"
        )

    # ---- checkpoints

    def whole(self, model: nn.Module, optimizer: Optimizer | None, *, everywhere: bool) -> tuple[nn.Module, Any]:
        """Model and optimizer as checkpoints see them, which is as they are, unless an engine of its own keeps the tensors.
        Not `everywhere`: one process that has them is enough. Called by every process."""
        return model, optimizer

    def take(self, model: nn.Module, whole: nn.Module, optimizer: Optimizer | None) -> None:
        """The other way: what `whole` gave has been filled from a checkpoint."""

    # ---- what Lightning asks of a strategy

    @property
    def is_global_zero(self) -> bool:
        return self.world.rank == 0

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        total = self.world.sum_tensor(tensor)
        return total if str(reduce_op).lower().endswith("sum") else total / self.world.size

    def barrier(self, name: str | None = None) -> None:
        self.world.barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return self.world.gather(obj)[src]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        raise UserError("checkpoints are written by llmfactory.checkpoint, not by Lightning")

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        raise UserError("checkpoints are read by llmfactory.checkpoint, not by Lightning")
