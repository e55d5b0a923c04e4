"""Training from start, or from the last checkpoint, to the end: builds the pieces and hands them to Lightning's Trainer.

The Trainer is kept quiet (no bar, logger, checkpoint callback, sanity check or per-step logging), because those cost more
a step than the loop itself; four callbacks of ours do what is needed, in this order after each step: metrics, evaluation,
stopping, saving. So a checkpoint holds the outcome of everything that its step has caused, and a run that goes on from it
repeats nothing and leaves nothing out.

A resumed run is the unbroken one: the sample order is a function of (seed, sample number), the dropout masks of (seed,
step, process), the learning rate of the step; weights, optimizer, loss scale and early-stopping state come from the
checkpoint.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch

from llmfactory.checkpoint import io
from llmfactory.checkpoint.tensors import own_tensors
from llmfactory.config.plain import to_plain
from llmfactory.config.spec import Job
from llmfactory.core.sharding import Layout
from llmfactory.data.form.referenced import ReferencedRows
from llmfactory.model.count import parameters
from llmfactory.model.initialize import initialize
from llmfactory.model.part import use
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.parallel.shard import reshard
from llmfactory.parallel.spec import DeepSpeed, ParallelSpec
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.parallel.weights import put
from llmfactory.peft.freezing import thaw
from llmfactory.peft.spec import AdapterSpec
from llmfactory.precision.loss_scale import SMALLEST
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.run.allocator import keep_freed_memory
from llmfactory.run.asking import Asking
from llmfactory.run.decisions import Decisions, open_decisions
from llmfactory.run.determinism import settings
from llmfactory.run.display import Display
from llmfactory.run.environment import changed_bits, environment
from llmfactory.run.evaluating import Evaluating
from llmfactory.run.guarding import Guarding, Rewound, make_guard
from llmfactory.run.laid_out import LaidOut
from llmfactory.run.plain_file import write_yaml
from llmfactory.run.progress import Progress
from llmfactory.run.saving import Saving
from llmfactory.run.stopping import Stopping, signals, silence_lightning_signals
from llmfactory.run.supply import RowSupply, Supply, open_supply
from llmfactory.run.watching import Watching
from llmfactory.stage.anchor.spec import None_ as NoAnchor
from llmfactory.stage.base import BASE, base_of, find_base, trained_part
from llmfactory.stage.initial import HEAD, checkpoint_of, fill, has_new_head
from llmfactory.stage.magnitudes import Magnitudes
from llmfactory.stage.rates import rates
from llmfactory.stage.rows import Data
from llmfactory.stage.spec import Ppo, Pretrain, TrainingSpec
from llmfactory.stage.training import TrainingStage
from llmfactory.tracking.tracker import Tracker

if TYPE_CHECKING:
    from llmfactory.run.profiling import Profiler


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training left."""

    trained: Skeleton | LaidOut
    """In evaluation mode, whole, in a single process; else as it lies over the processes."""
    step: int
    """Optimizer steps done, those before a resume included."""
    best_loss: float | None
    """Lowest held-out loss during training (on `trainer.eval_rows` rows); None: there was no evaluation."""
    best_step: int | None
    """Its step."""
    stopped: str
    """Why it ended: "finished", "early" or "terminated"."""
    train_seconds: float
    """Of training alone (no evaluation, no saving), those before a resume included."""
    tokens_per_second: float
    """Tokens (padding not counted) of the whole run by its `train_seconds`."""
    skipped_steps: int
    """Steps left out because float16 gradients overflowed."""
    checkpoint: Path | None
    """The last checkpoint."""
    drawn: dict[str, float] = field(default_factory=dict)
    """Tokens and epochs of each source of a mixture, as `StepLoader.drawn` gives them."""
    supply: Supply | None = None
    """Where its batches came from; None: it was counted."""
    decisions: Decisions | None = None
    """What a guard decided; None: it was counted."""

    @property
    def model(self) -> Skeleton:
        """A plain module with the whole weights. Where it lies over several processes, all of them must ask for it."""
        if not isinstance(self.trained, LaidOut):
            return self.trained
        model = self.trained.whole(everywhere=True)
        assert model is not None
        return model

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.trained.parameters if isinstance(self.trained, LaidOut) else parameters(self.trained)


def fit(
    job: Job,
    data: Data,
    folder: Path,
    tracker: Tracker,
    display: Display,
    world: World | None = None,
    profiler: Profiler | None = None,
) -> Fitted:
    """Train `job` on `data`; called by every process of the job. Checkpoints stand in `folder/checkpoints`.

    `world`: the processes to train on; None: all of the job. `profiler`: measures its steps, as many as it wants, with nothing between
    them: no evaluation, no checkpoint.

    Raises:
        UserError: a broken checkpoint, a full disk, a non-finite loss, too few processes or rows.
    """
    kind = device_type(job.trainer.device)
    if kind == "cpu":
        keep_freed_memory()
    with settings(job.trainer, kind), open_world(job.parallel.mesh(), kind) if world is None else nullcontext(world) as where:
        while True:
            try:
                return _fit(job, data, folder, tracker, display, where, profiler)
            except Rewound as rewound:
                display.stop()
                display.note(str(rewound))


def _fit(
    job: Job, data: Data, folder: Path, tracker: Tracker, display: Display, world: World, profiler: Profiler | None = None
) -> Fitted:
    spec = job.trainer
    checkpoints = folder / "checkpoints"
    decisions = open_decisions(folder, world)
    resume = world.broadcast(io.latest(checkpoints))
    surroundings = environment(world.device, world.size)
    progress = Progress()
    if resume is not None:
        state = io.read_state(resume)
        progress = Progress.restored(state)
        display.note(f"going on from {resume} (step {progress.step})")
        if changed := changed_bits(state["environment"], surroundings):
            display.note(changed)
    tracker.rewind(progress.step)
    last_step = spec.max_steps
    if progress.out_of_patience(spec.patience):  # it was to end here, and was killed before it said so
        progress.stopped, last_step = "early", progress.step
    elif progress.step >= spec.max_steps:
        display.note(f"trainer.max_steps={spec.max_steps} is reached already: nothing to train")
    last_step = last_step if profiler is None else min(last_step, profiler.last_step)

    assert isinstance(job.stage, TrainingSpec)
    objective = job.stage.trained(job)
    supply = open_supply(job, objective, data, world, progress, resume, last_step, decisions.left_out)
    stands_on = None if resume is None else state.get(BASE)
    base = None if resume is None or stands_on is None else find_base(resume, stands_on, job.init)
    encode = data.tokenizer.encode
    stage = build_stage(job, supply.isolated, fresh=resume is None, note=display.note, base=base, encode=encode)
    stage.magnitudes = Magnitudes(spec.log_every, last_step) if spec.log_parts else None
    if stands_on is None and stage.model.borrowed:
        starting = None if job.init is None else checkpoint_of(job, "starting")
        stands_on = world.broadcast(base_of(job.init, starting, job.seed, job.init_trained) if world.rank == 0 else None)
    formats = job.precision.build(world.device.type)
    sizes = spec.sizes(job.data.seq_len)
    strategy = make_strategy(
        job.parallel,
        world,
        seed=job.seed,
        rows=sizes.rows,
        micro_batch_size=spec.micro_batch_size,
        samples=supply.samples,
        smallest_scale=SMALLEST,
        compile=spec.compile,
        scratch=scratch_of(job, folder),
        in_backward=spec.in_backward,
    )
    supply.begin(stage, strategy, formats)
    strategy.guard = guard = make_guard(job, world, None if resume is None else state, decisions)
    guarding = None if guard is None else Guarding(guard, decisions, job, data, supply, strategy, progress, display)
    saving = Saving(
        checkpoints,
        spec,
        progress,
        strategy,
        formats,
        resume=resume,
        record={"environment": surroundings, **({} if stands_on is None else {BASE: stands_on})},
        attach=partial(attach, job, data),
        samples=sizes.before,
        keep=supply.keep,
        more=dict if guarding is None else guarding.state,
    )
    callbacks = [
        *asking(job, data, supply, strategy, display, folder, resume),
        Watching(progress, strategy, formats, tracker, display, spec.log_every, supply.drawn),
        *([] if guarding is None else [guarding]),
    ]
    loader = supply.loader
    if profiler is None:
        evaluating = Evaluating(progress, supply.measure, tracker, display, every=spec.eval_every, rows=spec.eval_rows)
        callbacks += [evaluating, Stopping(progress, strategy, spec.patience), saving]
    else:
        profiler.attach(strategy)
        callbacks.append(profiler)
        loader = profiler.loader(loader)
    display.start(last_step if profiler is not None else spec.max_steps, progress.step)
    with _quiet_lightning(), signals(strategy):
        _train(stage, loader, strategy, formats, callbacks, last_step, progress.step)
    progress.watch.stop()
    display.stop()
    if stage.average is not None:  # from here on the model is what others get
        reshard(stage.root)
        stage.average.put()
    trained: Skeleton | LaidOut = stage.model.eval()
    if world.dense is not None:
        trained = LaidOut(job, stage, formats, strategy, partial(supply.measure, None))
    return Fitted(
        trained,
        step=progress.step,
        best_loss=progress.best_loss,
        best_step=progress.best_step,
        stopped=progress.stopped or "finished",
        train_seconds=progress.watch.seconds,
        tokens_per_second=progress.tokens / max(progress.watch.seconds, 1e-9),
        skipped_steps=0 if formats.loss_scale is None else int(formats.loss_scale.skipped),
        checkpoint=saving.last,
        drawn=supply.drawn(progress.step),
        supply=supply,
        decisions=decisions,
    )


def asking(
    job: Job, data: Data, supply: Supply, strategy: MeshStrategy, display: Display, folder: Path, resume: Path | None
) -> list[pl.Callback]:
    """Who asks a reference before training, where its answers are not known yet."""
    parts = {"train": supply.rows, "held_out": supply.held_out} if isinstance(supply, RowSupply) else {}
    rows = {part: some for part, some in parts.items() if isinstance(some, ReferencedRows)}
    return [Asking(job, data, rows, strategy, display, folder, resume is not None)] if rows else []


def scratch_of(job: Job, folder: Path) -> Path:
    """Where a layout may keep files that live as long as the process."""
    named = getattr(job.parallel, "offload_dir", None)
    return folder / "offload" if named is None else Path(named)


def attach(job: Job, data: Data, path: Path) -> None:
    """What travels along with a checkpoint."""
    data.save(path / "tokenizer")
    write_yaml(path / "config.yaml", to_plain(job))


def make_strategy(layout: ParallelSpec, world: World, **settings: Any) -> MeshStrategy:
    """The strategy of a layout; `settings` are those of `MeshStrategy`."""
    if isinstance(layout, DeepSpeed):
        from llmfactory.parallel.deepspeed import DeepSpeedStrategy

        return DeepSpeedStrategy(world, layout, **settings)
    return MeshStrategy(world, layout.mesh(), **settings)


def build_stage(
    job: Job,
    isolated: bool,
    fresh: bool = True,
    note: Callable[[str], None] = lambda text: None,
    base: Path | None = None,
    encode: Callable[[str], list[int]] | None = None,
) -> TrainingStage:
    """The stage, its model on the meta device: whoever has laid it out fills it (`TrainingStage.fill`) with its first weights,
    those of `init` or random ones. Not `fresh`: a checkpoint will; `base`: where what it does not hold comes from. `encode`: tokens
    of a text, for methods that begin with one."""
    assert isinstance(job.stage, TrainingSpec)
    objective = job.stage.trained(job)
    with torch.device("meta"):
        model = job.model.build()
        job.peft.apply(model)
        objective.equip(model)
    use(model, job.trainer.kernel)
    declared = job.optim.width.declared(model, job.model, objective.equip)
    job.precision.build("meta").convert_module(model)  # first: float64 weights must not pass through float32
    # What is borrowed is not in the checkpoint of a run that goes on, so that it starts as a fresh one does.
    # Nor are the weights that an anchor holds on to.
    begins = fresh or bool(model.borrowed) or not isinstance(job.stage.anchor, NoAnchor)
    checkpoint = base
    if checkpoint is None and begins and job.init is not None:
        checkpoint = checkpoint_of(job, "starting")
    new_head = checkpoint is not None and has_new_head(model, checkpoint)
    if new_head:
        note(f"the head starts anew: {checkpoint} has another one")
        if isinstance(job.peft, AdapterSpec) and job.peft.train is None:
            thaw(model, [HEAD.rstrip(".")])

    part = None if checkpoint is None else trained_part(checkpoint)
    goes_on = part is not None and not part.peft.merges  # then the checkpoint's adapters are the model's

    init = None if job.init is None else Path(job.init).expanduser()
    anchor = job.stage.anchor.build(init, checkpoint)
    held = {name for name in own_tensors(model) if not (new_head and name.startswith(HEAD))}

    def first_weights(model: Skeleton, world: World) -> None:
        if begins and (checkpoint is None or new_head or model.added):
            initialize(model, job.seed, put, declared)
        if checkpoint is not None:
            fill(model, checkpoint, HEAD if new_head else None, world, job.init_trained)
        if begins:  # first: adapters may take their first values out of the weights
            objective.begin(model)
        if begins and not goes_on:
            job.peft.begin(model, world, encode)
        if fresh and isinstance(job.stage, Ppo) and job.stage.critic is not None:
            fill(cast(Skeleton, model.critic), io.find(Path(job.stage.critic).expanduser()), None, world)
        if anchor is not None:
            anchor.hold(model, held)

    return TrainingStage(
        model,
        objective,
        job.optim,
        rates=rates(model, job.optim, declared, job.peft.lr_factors(model)),
        max_steps=job.trainer.max_steps,
        isolated=isolated,
        first_weights=first_weights,
        after_step=job.peft.stepped,
        resting=[name for name, one in declared.items() if one.layout is not Layout.vocab],
        resting_steps=job.stage.embeddings_only_steps if isinstance(job.stage, Pretrain) else 0,
        anchor=anchor,
        rounding=job.precision.rounding(),
        seed=job.seed,
    )


def _train(
    stage: TrainingStage,
    loader: Iterable[Any],
    strategy: MeshStrategy,
    formats: MeshPrecision,
    callbacks: list[pl.Callback],
    max_steps: int,
    start_step: int,
) -> None:
    """Lightning's part. `trainer.global_step` counts the steps before a resume too."""
    trainer = pl.Trainer(
        accelerator="cuda" if strategy.world.device.type == "cuda" else "cpu",
        devices=1,
        strategy=strategy,
        plugins=[formats],
        max_steps=max_steps,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    silence_lightning_signals(trainer)
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    progress.total.ready = progress.total.completed = start_step
    try:
        trainer.fit(stage, loader)
    except SystemExit as stop:  # what Lightning makes of a KeyboardInterrupt
        raise KeyboardInterrupt from stop


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without its remarks about accelerators that are not there, its advertisements, and a warning about its own code.

    And without those of torch about checkpoints, which may be written in a thread, where no filter can be set.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with io.quiet():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="The `srun` command is available", category=UserWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
