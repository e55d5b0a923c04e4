"""DeepSpeed's own ZeRO engine in the place of ours, with the same numbers (Rajbhandari et al. 2020; Ren et al. 2021, Offload;
Rajbhandari et al. 2021, Infinity).

Not through Lightning's DeepSpeedStrategy: it refuses CPUs, so that nothing of it could be proven without GPUs; it makes one
backward pass a Lightning batch, and one Lightning batch is here a whole step of several micro-batches; and it writes pickled
checkpoints that only the same layout reads.

The engine divides the sum of gradients by the number of processes, so each back-propagates its share of the step's loss times
that number: the mean of these is the sum of the shares, and norm and clipping are those of the step. The boundary between
steps is told to the engine, whose own count would need as many micro-batches in each.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmfactory.core.errors import UserError
from llmfactory.core.sharding import name_seed
from llmfactory.parallel.drawing import seed_generators
from llmfactory.parallel.mesh import World
from llmfactory.parallel.spec import DeepSpeed, Offload
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.parallel.trainable import Formats

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from llmfactory.core.batch import Batch


def engine_config(spec: DeepSpeed, clip_norm: float | None, pinned: bool) -> dict[str, Any]:
    """DeepSpeed's configuration. `pinned`: transfers from host memory go to a GPU."""
    zero: dict[str, Any] = {"stage": spec.stage}
    if spec.offload is not Offload.none:
        place = {"device": "cpu", "pin_memory": pinned}
        zero["offload_optimizer"] = place
        if spec.stage == 3:
            zero["offload_param"] = place
    return {
        "train_micro_batch_size_per_gpu": 1,  # must be given; only the engine's own count of samples, unused here, knows it
        "gradient_accumulation_steps": 1,  # by which it would divide
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # ours is torch's, whose state is cut like that of any other
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": sys.maxsize,
    }


class _Within(nn.Module):
    """The training module within our number formats: the engine switches autocast off around what it runs."""

    def __init__(self, root: nn.Module, formats: Formats) -> None:
        super().__init__()
        self.root, self._context = root, formats.forward_context

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self._context():
            sums: dict[str, Tensor] = self.root(batch)
        return sums


class DeepSpeedStrategy(MeshStrategy):
    """A step by DeepSpeed's engine."""

    def __init__(self, world: World, spec: DeepSpeed, **settings: Any) -> None:
        super().__init__(world, spec.mesh(), **settings)
        self.spec = spec
        self.engine: Any = None

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        self.fill(self.stage.root)
        self.setup_optimizers(trainer)
        deepspeed = self._library()
        self.engine, *_ = deepspeed.initialize(
            model=_Within(self.stage.root, self.formats),
            optimizer=self.optimizers[0],
            config=engine_config(self.spec, self.stage.clip_norm, pinned=self.world.device.type == "cuda"),
            dist_init_required=False,
        )

    def _library(self) -> Any:
        """The package, quiet, on our device, its extensions built by one process."""
        warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if get_accelerator().device_name() != self.world.device.type:
            raise UserError(
                f"trainer.device={self.world.device.type}, but DeepSpeed takes this machine for {get_accelerator().device_name()}: "
                f"use trainer.device=auto"
            )
        if self.world.device.type == "cpu":
            from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

            # Two processes that build it at once wait for each other's lock, for ever if one was killed.
            self.world.once(lambda: ShareMemCommBuilder().load())
        return deepspeed

    # ---- the step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        seed_generators(name_seed(self.seed, f"step {self._step} rank {self._draws}"), self.world.device)
        total = torch.zeros((), device=self.world.device)
        pieces = list(self._pieces(batch))
        for number, (piece, share) in enumerate(pieces, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(pieces))
            sums = self.engine(piece)
            loss = share * sum(sums[name] / (self._denominators[name] or 1.0) for name in sums)
            self.engine.backward(loss * self.world.size, scale_wrt_gas=False)
            total += loss.detach()
        return total

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: pl.LightningModule | nn.Module | None = None, **kwargs: Any
    ) -> Tensor:
        self.loss = self.world.sum_tensor(closure())
        if not self.loss.isfinite():
            self._stop(self._step + 1, self.loss.item(), float("nan"))
        self.engine.step()  # leaves the weights alone if the norm is not finite
        self.norm = torch.as_tensor(self.engine.get_global_grad_norm(), device=self.world.device)
        if not self.norm.isfinite():
            self._stop(self._step + 1, self.loss.item(), self.norm.item())
        return self.loss

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = self.engine(batch)
        return sums

    # ---- checkpoints

    def whole(self, model: nn.Module, optimizer: Optimizer | None, *, everywhere: bool) -> tuple[nn.Module, Any]:
        kept, keep = Whole(), everywhere or self.world.rank == 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                weight = nn.Parameter(self._gathered(parameter).cpu(), parameter.requires_grad)
                state = self._state_of(parameter) if optimizer is not None and parameter.requires_grad else {}
                if keep:
                    kept.weights[name] = weight
                    kept.state[weight] = {key: value.cpu() for key, value in state.items()}
        kept.numbers = {name: buffer for name, buffer in _persistent(model) if keep}
        return kept, None if optimizer is None else kept

    def take(self, model: nn.Module, whole: nn.Module, optimizer: Optimizer | None) -> None:
        assert isinstance(whole, Whole)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                self._set(parameter, whole.weights[name])
            for name, buffer in _persistent(model):
                buffer.copy_(whole.numbers[name])
            if optimizer is not None and any(whole.state.values()):
                self._make_state(whole)
                for name, parameter in model.named_parameters():
                    weight = whole.weights[name]
                    for key, value in whole.state.get(weight, {}).items():
                        if value.shape == weight.shape:
                            self._set(parameter, value, key)

    def _gathered(self, parameter: Tensor) -> Tensor:
        """All of a weight, on every process."""
        if self.spec.stage < 3:
            return parameter.detach()
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()

    def _flats(self) -> list[Tensor]:
        """The optimizer's own parameters here: pieces of many weights one after another."""
        zero = self.engine.optimizer
        flats: list[Tensor] = zero.fp32_partitioned_groups_flat if self.spec.stage == 3 else zero.single_partition_of_fp32_groups
        return flats

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The optimizer's state of a weight, whole; nothing before the first step."""
        from deepspeed.utils import safe_get_full_optimizer_state

        inner = self.engine.optimizer.optimizer
        flat = self._flats()[0]
        self._link()
        found = {}
        for key, value in inner.state.get(flat, {}).items():
            if isinstance(value, Tensor):
                found[key] = value.clone() if value.dim() == 0 else safe_get_full_optimizer_state(parameter, key).clone()
        return found

    def _link(self) -> None:
        """Stages 1 and 2 find the state of a weight by links that DeepSpeed makes after the first group's first step, when
        the other groups have none yet: make them again."""
        if self.spec.stage < 3:
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _make_state(self, whole: Whole) -> None:
        """Room for the optimizer's state, as after a first step."""
        inner = self.engine.optimizer.optimizer
        weight, state = next((weight, state) for weight, state in whole.state.items() if state)
        for flat in self._flats():
            inner.state[flat] = {
                key: torch.zeros_like(flat) if value.shape == weight.shape else value.clone() for key, value in state.items()
            }
        self._link()

    def _set(self, parameter: Tensor, value: Tensor, key: str | None = None) -> None:
        """Fill this process's part of a weight, or of its state `key`."""
        value = value.to(self.world.device)
        if self.spec.stage < 3:
            if key is None:
                parameter.copy_(value)
            if parameter.requires_grad:
                parameter.set_full_hp_param(value, key)  # type: ignore[attr-defined]
            return
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        if key is None:
            with GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
        if not parameter.requires_grad:
            return
        piece = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, piece * self.world.size - value.numel()))
        mine = padded.narrow(0, piece * self.world.rank, piece)
        if key is None:
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, key)


class Whole(nn.Module):
    """Whole weights, buffers and optimizer state by name, as `llmfactory.checkpoint` looks at a model and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, nn.Parameter] = {}
        self.numbers: dict[str, Tensor] = {}
        """Persistent buffers."""
        self.state: defaultdict[nn.Parameter, dict[str, Tensor]] = defaultdict(dict)
        self.defaults: dict[str, Any] = {}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.weights.items()

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        yield from self.numbers.items()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return {**self.weights, **self.numbers}


def _persistent(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that a checkpoint holds."""
    kept = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)
