"""stage=profile: the first steps of a training as they would run, timed, then one of them traced, then one with stacks.

Nothing that is computed differs from the unprofiled run: samples, losses and weights of its steps are the same. Left out are what is
between steps: evaluation, checkpoints, early stopping, the sample.

What is left in the run folder: `profile.json` (all figures of all processes), `trace_<rank>.json.gz` (for Perfetto or chrome://tracing),
`flame_<rank>.collapsed` and `flame_<rank>.svg`.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from llmfactory.config.profiled import trained
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.run.display import make_display
from llmfactory.run.environment import environment
from llmfactory.run.fit import fit
from llmfactory.run.flame import collapsed, picture, stacks
from llmfactory.run.folder import write_result
from llmfactory.run.phases import PhaseClock, StepTime
from llmfactory.run.plain_file import write_json, write_whole
from llmfactory.run.preflight import preflight
from llmfactory.run.profile_figures import Measured, figures_of, tables_of
from llmfactory.run.trace import Peak, peak_of, read_trace, watching_parts
from llmfactory.run.train import prepare_in_turn
from llmfactory.stage.plan import aligned
from llmfactory.stage.profile_spec import Profile
from llmfactory.stage.training import TrainingStage

FIGURES = "profile.json"
MOST_GAP = 0.02
"""Share of a step that its phases may leave unexplained; more is a mistake of ours."""


def profile_training(job: Job, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Results as plain data; called by every process."""
    assert isinstance(job.stage, Profile)
    spec, of = job.stage, trained(job)
    with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
        here: dict[str, Any] = {"environment": environment(world.device, world.size)}
        display = make_display(job.trainer.progress, world.rank)
        try:
            data = prepare_in_turn(of, folder, world, display)
            if world.rank == 0:
                write_result(folder, {"name": config["name"], "stage": "profile", "status": "running", **here})
            if job.trainer.preflight:
                preflight(of, data, folder, world, display)
            tracker = job.tracking.build(folder, config) if world.rank == 0 else None
            with tempfile.TemporaryDirectory(prefix="llmfactory_profile_") as scratch:
                profiler = Profiler(spec, world, folder, Path(scratch))
                fit(of, data, folder, tracker or _no_tracker(), display, profiler=profiler)
                display.stop()
                mine = profiler.measured()
        finally:
            display.stop()
        everyone: list[Measured] = world.gather(mine)
        found = figures_of(of, data, world, everyone)
        if tracker is not None:
            tracker.finish({key: value for key, value in found.items() if isinstance(value, float)})
        tables = tables_of(found)
        if world.rank == 0:
            write_json(folder / FIGURES, {**found, "processes": [dataclasses.asdict(one) for one in everyone]})
            for title, rows in tables:
                print(f"\n{title}", *aligned(rows), sep="\n")
            print(f"\ntrace for https://ui.perfetto.dev: {folder / 'trace_0.json.gz'}", flush=True)
    return {**here, "profile": found, "tables": tables}


def _no_tracker() -> Any:
    from llmfactory.tracking.none import NoTracker

    return NoTracker()


class Profiler(pl.Callback):
    """Comes last among the callbacks, so that its end of a step is everybody's. `attach` before training."""

    def __init__(self, spec: Profile, world: World, folder: Path, scratch: Path) -> None:
        self.spec, self.world, self.folder, self.scratch = spec, world, folder, scratch
        self.clock = PhaseClock(world.device)
        self.steps: list[StepTime] = []
        self.tokens: list[float] = []
        self.done = 0
        self.gradients: set[int] = set()
        self.peak_bytes = 0
        self._open = ExitStack()
        self._profile: Any = None

    @property
    def last_step(self) -> int:
        return self.spec.steps

    def loader(self, batches: Any) -> Any:
        return (_TimedInTime if hasattr(batches, "__len__") else _Timed)(self.clock, batches)

    def attach(self, strategy: MeshStrategy) -> None:
        self.strategy = strategy
        strategy.begins = self.clock.begin

    def on_before_zero_grad(self, trainer: pl.Trainer, stage: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        """What Lightning calls between the last backward pass of a step and the optimizer (`MeshStrategy`)."""
        if self._profile is not None:
            self.gradients = {_storage(p.grad) for p in self.stage.model.parameters() if p.grad is not None}
        self.clock.begin("optimizer")

    def on_fit_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, TrainingStage)
        optimizer = stage.optimizers(use_pl_optimizer=False)
        if stage.average is not None:
            assert isinstance(optimizer, torch.optim.Optimizer)
            stage.average.begin(stage.model, optimizer)

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        assert isinstance(stage, TrainingStage)
        self.stage = stage
        if self.strategy.pipeline is not None:
            self.strategy.pipeline.begins = self.clock.begin
        self._open.enter_context(self.clock.listening())
        self.clock.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, stage: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        lap = self.clock.lap()
        self.done += 1
        warm, timed = self.spec.warm_up, self.spec.warm_up + self.spec.measured
        if warm < self.done <= timed:
            self.steps.append(lap)
            self.tokens.append(self.strategy.tokens)
        if self.done == warm and self.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.world.device)
        if self.done == timed:
            if self.world.device.type == "cuda":
                self.peak_bytes = torch.cuda.max_memory_allocated(self.world.device)
            self._sizes()
            self._trace(with_stack=False)
        elif self.done == timed + 1:
            self._stop("trace")
            if self.spec.stacks:
                self._trace(with_stack=True)
        elif self.done == timed + 2:
            self._stop("stacks")

    def on_train_end(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, stage: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self.clock.close()
        if self._profile is not None:  # an error in the step that is traced; a profiler that nobody ends crashes the process
            with self._quiet():
                self._profile.__exit__(None, None, None)
            self._profile = None
        self._open.close()

    def _sizes(self) -> None:
        """Bytes of weights and optimizer state of this process."""
        optimizer = self.stage.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        state = (value for one in optimizer.state.values() for value in _tensors(one))
        weights = [*self.stage.parameters(), *self.stage.buffers()]
        self.weight_bytes, self.state_bytes = _bytes(weights, self.world.device), _bytes(state, self.world.device)

    def _trace(self, with_stack: bool) -> None:
        self._tracing = self._open.enter_context(ExitStack())
        if not with_stack:
            self._tracing.enter_context(watching_parts(self.stage.root))
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.world.device.type == "cuda" else [])
        self._profile = profile(activities=kinds, profile_memory=not with_stack, with_stack=with_stack, acc_events=True)
        with self._quiet():
            self._profile.__enter__()
        self.clock.named = not with_stack  # where stacks are, they say the phase
        self.clock.begin("framework")

    def _stop(self, name: str) -> None:
        assert self._profile is not None
        self.clock.close()
        with self._quiet():
            self._profile.__exit__(None, None, None)
        self._tracing.close()
        self._profile.export_chrome_trace(str(self.scratch / f"{name}.json"))
        self._profile = None
        self.clock.start()

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without the profiler's remarks that it starts and stops, which no setting turns off. On a GPU it may have more to say."""
        if self.world.device.type == "cuda":
            yield
            return
        sys.stderr.flush()
        kept = os.dup(2)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
                os.close(kept)

    def measured(self) -> Measured:
        """What this process has seen; writes its files."""
        if len(self.steps) < self.spec.measured:
            raise UserError(f"the training ended after {self.done} steps, and the profile takes {self.spec.steps}")
        for one in self.steps:
            if one.gap() > MOST_GAP and one.total * one.gap() > 1e-3:
                raise RuntimeError(f"phases do not add up: {one.phases} of {one.total} s")
        rank = self.world.rank
        with (self.scratch / "trace.json").open("rb") as source, gzip.open(self.folder / f"trace_{rank}.json.gz", "wb") as file:
            shutil.copyfileobj(source, file)
        trace = read_trace(self.scratch / "trace.json")
        if self.spec.stacks:
            found = stacks(read_trace(self.scratch / "stacks.json").nodes)
            write_whole(self.folder / f"flame_{rank}.collapsed", collapsed(found))
            write_whole(self.folder / f"flame_{rank}.svg", picture(found))
        peak: Peak = peak_of(trace, self.gradients, self.world.device)
        return Measured(
            rank=rank,
            steps=self.steps,
            tokens=median(self.tokens),
            parts=[(phase, part, seconds) for (phase, part), seconds in trace.seconds().items()],
            exposed=trace.exposed(),
            weight_bytes=self.weight_bytes,
            state_bytes=self.state_bytes,
            peak=peak,
            allocator_peak_bytes=self.peak_bytes or None,
        )


class _Timed:
    """A loader whose time is that of data."""

    def __init__(self, clock: PhaseClock, batches: Any) -> None:
        self.clock, self.batches = clock, batches

    def __iter__(self) -> Iterator[Any]:
        return self.clock.fetching(self.batches)


class _TimedInTime(_Timed):
    """One that must not be asked for a batch ahead of its step: Lightning asks in time where there is a length."""

    def __len__(self) -> int:
        return len(self.batches)


def _storage(tensor: torch.Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.untyped_storage().data_ptr()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)


def _bytes(tensors: Any, device: torch.device) -> int:
    """Of all storages on a device, each once."""
    found: dict[int, int] = {}
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.device.type == device.type:
            storage = local.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
