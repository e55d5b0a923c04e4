"""A training job from data to figures: prepare, fit, evaluate on all held-out rows, write a sample.

Every process runs it; only rank 0 shows and keeps anything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmfactory.checkpoint.io import latest
from llmfactory.config.spec import Job, Resume
from llmfactory.core.batch import IGNORE
from llmfactory.core.errors import UserError
from llmfactory.data.examples import Examples
from llmfactory.data.pack.rows import Rows, shares
from llmfactory.data.prepared import Prepared
from llmfactory.model.skeleton import Skeleton
from llmfactory.objective.objective import Objective
from llmfactory.parallel.mesh import World, device_type, open_world
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.run.count import count
from llmfactory.run.display import Display, make_display
from llmfactory.run.environment import environment
from llmfactory.run.fit import Fitted, fit
from llmfactory.run.folder import read_result, write_result
from llmfactory.run.laid_out import LaidOut
from llmfactory.run.peak import matmul_peak
from llmfactory.run.preflight import preflight
from llmfactory.run.preparing import told
from llmfactory.run.sample import sample
from llmfactory.run.supply import RowSupply
from llmfactory.stage.evaluate import compressor_figures, held_out_figures, text_bytes
from llmfactory.stage.initial import checkpoint_of
from llmfactory.stage.part_flops import flops_by_part
from llmfactory.stage.rates import insist_on_names
from llmfactory.stage.rows import Data, read_data, task_rows
from llmfactory.stage.score import score
from llmfactory.stage.spec import RlSpec, TrainingSpec
from llmfactory.tracking.none import NoTracker

LOOK = 64
"""Rows that shares are told from."""
EVALUATION_ROWS = 16
"""Rows that a process evaluates at once where the config names no micro-batch size."""


def train(job: Job, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Results as plain data. A run that was stopped by a signal has no figures yet."""
    job.parallel.insist_installed()
    counted = job.model.graph == "counts"
    with open_world(job.parallel.mesh(), device_type(job.trainer.device)) as world:
        here: dict[str, Any] = {"environment": environment(world.device, world.size)}
        display = make_display(job.trainer.progress, world.rank)
        try:
            data = prepare_in_turn(job, folder, world, display)
            here["data"] = data.name
            if isinstance(data, Prepared):
                for left_out in told(data):
                    display.note(left_out)
            if world.rank == 0:
                insist_same_data(job, folder, data)
                write_result(folder, {"name": config["name"], "stage": config["stage"]["type"], "status": "running", **here})
            if job.trainer.preflight:
                preflight(job, data, folder, world, display)
            tracker = job.tracking.build(folder, config) if world.rank == 0 else NoTracker()
            try:
                fitted = (count if counted else fit)(job, data, folder, tracker, display)
            except BaseException:
                tracker.finish({})
                raise
        finally:
            display.stop()
        result: dict[str, Any] = {
            "status": fitted.stopped,
            "max_steps": job.trainer.max_steps,
            "patience": job.trainer.patience,
            "step": fitted.step,
            "best_loss": fitted.best_loss,
            "best_step": fitted.best_step,
            "skipped_steps": fitted.skipped_steps,
            "checkpoint": str(fitted.checkpoint),
            "train_seconds": fitted.train_seconds,
            **({} if fitted.decisions is None else fitted.decisions.counted()),
            **here,
        }
        if counted:  # done is done: there are no steps to go on with
            for key in ("max_steps", "patience", "step", "best_loss", "best_step", "skipped_steps"):
                del result[key]
        if fitted.stopped != "terminated":
            result |= figures_of(job, fitted, data, world, display.note)
        tracker.finish({key: float(value) for key, value in result.items() if isinstance(value, (int, float))})
    return result


def insist_same_data(job: Job, folder: Path, data: Data) -> None:
    """A run that goes on must go on with the text that it began with; files may have changed under the same config."""
    before = (read_result(folder) or {}).get("data")
    if before in (None, data.name) or job.resume is Resume.changed or latest(folder / "checkpoints") is None:
        return
    raise UserError(
        f"the files behind data, or the way of preparing them, have changed since {folder} was begun (prepared data {before} "
        f"then, {data.name} now): give another name=, or resume=changed to go on with the new text"
    )


def prepare_in_turn(job: Job, folder: Path, world: World, display: Display) -> Data:
    """Rank 0 prepares and shows how far it is; the others wait for its lock, however long that takes, and read.

    They are let go as soon as rank 0 holds the lock: waiting in a collective operation would run into its time limit.
    """
    insist_on_names(job)
    checkpoint = None
    if job.init is not None:  # a run that goes on has its own copy of the tokenizer
        checkpoint = latest(folder / "checkpoints") or checkpoint_of(job, "starting")
    waiting = world.size > 1

    def let_go() -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            world.barrier()

    def progress(what: str, done: int, total: int) -> None:
        let_go()
        display.preparing(what, done, total)

    assert isinstance(job.stage, TrainingSpec)
    specials = job.stage.objective.specials()
    if world.rank != 0:
        let_go()
        return read_data(job, checkpoint, specials)
    data = read_data(job, checkpoint, specials, progress)
    let_go()
    display.stop()
    return data


def figures_of(
    job: Job, fitted: Fitted, data: Data, world: World, note: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """What the end table and the report show; `note` is told what is left out because a whole model does not fit."""
    assert isinstance(job.stage, TrainingSpec)
    objective = job.stage.trained(job)
    precision = job.precision.build(world.device.type)
    found: dict[str, Any] = {"parameters": fitted.parameters, "tokens_per_second": fitted.tokens_per_second}
    if isinstance(job.stage, RlSpec):
        return found | rewards_of(fitted)
    found |= _held_out(job, fitted, objective, data, precision, world, note)
    rows = task_rows(job, objective, data, "train")
    if isinstance(data, Prepared):
        found |= fitted.drawn | shares(rows)
    if isinstance(data, Prepared) and data.records:
        found["learned_share"] = learned_share(rows)
    measured = found.get("held_out_loss") is not None
    if isinstance(data, Prepared) and not data.records and objective.likelihood and measured and world.rank == 0:
        found |= compressor_figures(data)
    # Counting and looking vectors up make no matrix products; the two sides of an encoder-decoder see different numbers of
    # tokens a second.
    if job.model.graph not in ("counts", "words", "encoder_decoder"):
        peak = sum(world.gather(matmul_peak(world.device, precision.products or precision.weights)))
        share = labelled_share(rows) if objective.sparse else 1.0
        flops = sum(flops_by_part(job, share).values()) * fitted.tokens_per_second
        found |= {"peak_flops": peak, "mfu": flops / peak}
    if job.trainer.sample and objective.continues and isinstance(data, Prepared):
        model: Skeleton | None = None
        if not isinstance(fitted.trained, LaidOut):
            model = fitted.trained
        elif (reason := fitted.trained.too_large(everywhere=False)) is None:
            model = fitted.trained.whole(everywhere=False)
        else:
            note(f"no sample: {reason}; stage=generate init={fitted.checkpoint} makes one elsewhere")
        if model is not None and world.rank == 0:
            found["sample"] = sample(job, model, data, precision)
            if found["sample"] is None:
                note("no sample: every question takes more than half of the model's positions")
    return found


def rewards_of(fitted: Fitted) -> dict[str, Any]:
    """Figures of a run that learned from rewards: what answers to all held-out prompts get, and how it went."""
    assert fitted.supply is not None
    measured = fitted.supply.measure(None)
    return (measured.figures(None) if measured is not None else {}) | fitted.supply.figures()


def _held_out(
    job: Job,
    fitted: Fitted,
    objective: Objective,
    data: Data,
    precision: MeshPrecision,
    world: World,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Figures of all held-out rows, by a model that lies over several processes as it lies.

    The figures of labelled examples' task need it whole on each.
    """
    trained, at_once = fitted.trained, job.trainer.micro_batch_size or EVALUATION_ROWS
    if not isinstance(trained, LaidOut):
        known = fitted.supply.held_out if isinstance(fitted.supply, RowSupply) else None
        return held_out_figures(job, trained, objective, data, precision, world, at_once, known)
    measured = trained.measure()
    if measured is None:
        return {}
    figures = measured.figures(text_bytes(data))
    if isinstance(data, Examples):
        if (reason := trained.too_large(everywhere=True)) is None:
            model = trained.whole(everywhere=True)
            assert model is not None
            figures |= score(model, data, job.data.seq_len, precision, world, at_once)
        else:
            note(f"no figures of the task: {reason}; stage=evaluate init={fitted.checkpoint} makes them elsewhere")
    return figures


def learned_share(rows: Rows) -> float:
    """Of all tokens, those that are learned: what the assistant writes."""
    parts = list(rows.sources.values()) or [rows]
    return sum(part.targets for part in parts) / max(1, sum(part.file.inputs for part in parts))


def labelled_share(rows: Rows) -> float:
    """Of the tokens of some rows, those with a label."""
    batch = rows.read(np.arange(min(len(rows), LOOK)))
    return float((batch["labels"] != IGNORE).sum() / (batch["segments"] > 0).sum())
