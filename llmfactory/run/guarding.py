"""What becomes of steps that a guard has found: written down with their samples, and acted on.

The guard's verdict keeps a step from the weights by itself (`guard/guard.py`). Here, after each step on the CPU and on a GPU
whenever metrics are read, a model is measured or a checkpoint is written, its findings are asked for. Every process comes to the
same decisions, because all judge by the same numbers.

To go back is to raise `Rewound`: the training is taken down and built again from the earlier checkpoint, by the code that resumes a
run that was killed, so that the outcome is the same whether it was.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np

from llmfactory.checkpoint import io
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.data.order import passing_over
from llmfactory.guard.detector import Detector
from llmfactory.guard.guard import Guard
from llmfactory.guard.remedy import Action, Decision, Finding
from llmfactory.guard.rewind import RewindRun
from llmfactory.guard.spec import LimitedSpec, WatchSpec
from llmfactory.parallel.mesh import World
from llmfactory.parallel.strategy import MeshStrategy
from llmfactory.parallel.weights import local
from llmfactory.run.answers import AnswerSupply
from llmfactory.run.decisions import FILE, STATE, Decisions, Line
from llmfactory.run.display import Display
from llmfactory.run.progress import Progress
from llmfactory.run.supply import RowSupply, Supply
from llmfactory.run.worst_rows import described, outliers, row_losses, usual_row
from llmfactory.stage.rows import Data
from llmfactory.stage.training import TrainingStage

WITHHELD = {Action.skip, Action.lower_lr, Action.rewind, Action.stop}
"""Actions after which the step has not reached the weights."""
SHOWN = 8
"""Names in a message."""


class Rewound(Exception):
    """The run goes on from an earlier checkpoint; the message says from which, and why."""


def make_guard(job: Job, world: World, state: dict[str, Any] | None, decisions: Decisions) -> Guard | None:
    """The guard of a job, as it was in the `state` of the checkpoint that the run goes on from; None: it has none."""
    remedy = job.guard.build()
    if remedy is None:
        return None
    assert isinstance(job.guard, WatchSpec)
    guard = Guard(job.guard, remedy, Detector(job.guard, world.device))
    if state is not None and "window" in state.get(STATE, {}):
        guard.load(state[STATE])
    guard.decisions = max(guard.decisions, len(decisions.rewinds))
    return guard


class Guarding(pl.Callback):
    """Asks the guard, writes down what it found, and does what it decides."""

    def __init__(
        self,
        guard: Guard,
        decisions: Decisions,
        job: Job,
        data: Data,
        supply: Supply,
        strategy: MeshStrategy,
        progress: Progress,
        display: Display,
    ) -> None:
        self.guard, self.decisions, self.job, self.data = guard, decisions, job, data
        self.supply, self.strategy, self.progress, self.display = supply, strategy, progress, display
        self.began = progress.step

    def on_train_start(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        """A checkpoint from before a spike may hold what led to it."""
        assert isinstance(stage, TrainingStage)
        stage.lr_factor = self.guard.lr_factor
        self.stage = stage
        if not self.decisions.rewinds or self.decisions.rewinds[-1]["to"] != self.began:
            return
        if broken := self._broken_weights():
            numbers = {"loss": "unknown", "grad_norm": "unknown", "loss_z": None, "norm_z": None}
            line: Line = {"step": self.began, "what": "non_finite_weights", **numbers, "broken_weights": broken}
            if self.began == 0 or self._exhausted():
                self._stop(line, "the weights that the run would begin with again are not finite: " + _listed(broken))
            self._rewind(line, self.began, [0, 0])

    def on_train_batch_end(
        self, trainer: pl.Trainer, stage: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        spec, step, world = self.job.trainer, self.progress.step, self.strategy.world
        asked = self.strategy.stop_agreed or (world.size == 1 and self.strategy.stop_asked)
        every = [one for one in (spec.log_every, spec.eval_every, spec.save_every) if one is not None]
        if world.device.type == "cpu" or asked or step >= spec.max_steps or any(step % one == 0 for one in every):
            self.look()

    def look(self) -> None:
        """Act on what was found since the last look. Waits for the device."""
        for finding in self.guard.findings():
            self._act(finding)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; nothing that was found is left undone then."""
        self.look()
        rewinds = [{key: line[key] for key in line if key != "worst"} for line in self.decisions.rewinds]
        return {STATE: {**self.guard.state(), "rewinds": rewinds}}

    # ---- a step that went wrong

    def _act(self, finding: Finding) -> None:
        decision = self.guard.decide(finding)
        broken = [] if finding.finite else self._broken_weights()
        line = self._line(finding, broken)
        action = decision.action
        if action is Action.stop:
            self._stop(line, "a guard ends the run here" if finding.finite else "")
        if action is not Action.report and self._exhausted():
            self._stop(line, f"a guard has acted {self.guard.decisions} times in this run, and guard.limit allows no more")
        if broken and action is not Action.rewind:
            self._stop(line, "to leave the step out would not help: weights are not finite: " + _listed(broken))
        if action is Action.rewind:
            self._rewind(line, finding.step, line.pop("around"))
        line.pop("around", None)
        self.guard.decisions += action is not Action.report
        if action is Action.lower_lr:
            self.guard.slow_down(finding, decision, self.progress.step)
        self._write(line, decision)
        self.display.note(f"step {finding.step}: {_said(line)}; {action.name}: {action.value} ({FILE})")

    def _line(self, finding: Finding, broken: list[str]) -> Line:
        line: Line = {
            "step": finding.step,
            "what": "spike" if finding.finite else "not_finite",
            "loss": finding.loss,
            "grad_norm": finding.norm,
            "loss_z": finding.loss_z,
            "norm_z": finding.norm_z,
            "loss_center": finding.loss_center,
            "norm_center": finding.norm_center,
        }
        supply, step = self.supply, finding.step - 1
        if isinstance(supply, RowSupply):
            samples, rows = supply.steps.step(step)
            line |= {"samples": [int(samples[0]), int(samples[-1]) + 1], "rows": rows.tolist()}
            if self.guard.spec.name_rows and not broken:
                batch = supply.steps.batch(step)
                with self.progress.watch.paused():
                    losses = row_losses(self.stage, batch, len(rows), self.strategy)
                if losses:
                    places = outliers(losses, self.guard.spec, usual_row(finding, losses))
                    line["worst"] = described(places, losses, step, supply, self.data)
            if isinstance(self.guard.remedy, RewindRun):
                line["around"] = self._around(finding.step, supply)
        elif isinstance(supply, AnswerSupply):
            line |= supply.named(step, self.guard.spec)
        return line | ({"broken_weights": broken} if broken else {})

    def _around(self, step: int, supply: RowSupply) -> list[int]:
        """[first, last) of the samples that a rewind from a step, from 1, leaves out."""
        assert isinstance(self.guard.remedy, RewindRun)
        first, last = self.guard.remedy.left_out(step, self._target(step))
        sizes = self.job.trainer.sizes(self.job.data.seq_len)
        whole = passing_over(np.arange(sizes.before(first), sizes.before(last)), self.decisions.left_out)
        return [int(whole[0]), int(whole[-1]) + 1]

    def _target(self, step: int) -> int:
        assert isinstance(self.guard.remedy, RewindRun)
        saved = [io.step_of(path) for path in io.checkpoints(self.decisions.path.parent / "checkpoints")]
        target: int = self.strategy.world.broadcast(self.guard.remedy.target(step, saved))
        return target

    def _rewind(self, line: Line, step: int, around: list[int]) -> None:
        target = self._target(step)
        self._write({**line, "to": target, "left_out": around}, Decision(Action.rewind, {}))
        where = f"the checkpoint of step {target}" if target else "the beginning"
        raise Rewound(
            f"step {step}: {_said(line)}; going back to {where}, and on without samples {around[0]} to {around[1]} ({FILE})"
        )

    def _stop(self, line: Line, why: str) -> None:
        line.pop("around", None)
        self._write(line, Decision(Action.stop, {}))
        parts = [f"step {line['step']}: {_said(line)}", why, "the run ends here, and the step did not reach the weights"]
        if line.get("rows"):
            parts.append(f"its rows: {_listed(line['rows'])}")
        if line.get("worst"):
            parts.append("the worst: " + _listed(map(_named, line["worst"])))
        parts.append(f"{FILE} has it all; try a lower optim.lr or a longer optim.schedule.warmup_steps, or look at these samples")
        raise UserError("; ".join(part for part in parts if part))

    def _exhausted(self) -> bool:
        return isinstance(self.guard.spec, LimitedSpec) and self.guard.decisions >= self.guard.spec.limit

    def _write(self, line: Line, decision: Decision) -> None:
        withheld = decision.action in WITHHELD
        self.decisions.add(
            {**line, "action": decision.action.name, **decision.details, "withheld": withheld}, self.strategy.world
        )

    def _broken_weights(self) -> list[str]:
        """Names of parameters that are not finite, on any process."""
        mine = [name for name, p in self.stage.model.named_parameters() if not local(p.detach()).isfinite().all()]
        return sorted({name for names in self.strategy.world.gather(mine) for name in names})


def _said(line: Line) -> str:
    if line["what"] == "non_finite_weights":
        return "weights of the checkpoint are not finite"
    found = [f"the loss is {line['loss']:g}", f"the gradient norm {line['grad_norm']:g}"]
    for place, (z, center) in enumerate((("loss_z", "loss_center"), ("norm_z", "norm_center"))):
        if line["what"] == "spike":
            found[place] += f" ({line[z]:.1f} units from {line[center]:.4g})"
    return " and ".join(found)


def _named(row: Line) -> str:
    what = "reward" if "reward" in row else "loss"
    return f"{row['row']} ({what} {row[what]:.4g})"


def _listed(values: Any) -> str:
    names = [str(value) for value in values]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
