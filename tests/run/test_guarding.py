"""Poisoned runs: what was wrong is found by number, and the run ends like one without it; killed and started again, too."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from poisoned import NOISE, STEPS, WATCH, held_out, poisoned, poisoned_job, run
from toy_job import Memory, Notes, prepared, weights

from llmfactory.core.errors import UserError
from llmfactory.guard.spec import Clip, GuardSpec, LowerLr, None_, Report, Rewind, Skip, Stop
from llmfactory.parallel import strategy
from llmfactory.parallel.mesh import World
from llmfactory.precision.spec import Fp16Mixed
from llmfactory.run import decisions
from llmfactory.run.fit import Fitted
from llmfactory.run.guarding import Guarding, make_guard
from llmfactory.run.supply import RowSupply

REWIND = {"back": 4, "before": 1, "after": 1}
GUARDS: dict[str, GuardSpec] = {
    "skip": Skip(**WATCH),
    "clip": Clip(**WATCH),
    "lower_lr": LowerLr(**WATCH, steps=5),
    "rewind": Rewind(**WATCH, **REWIND),
}
NUMBER = "model.final_norm.weight"


class Killed(Exception):
    pass


def lines(folder: Path) -> list[dict[str, Any]]:
    return decisions.read_lines(folder / decisions.FILE)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Fitted, Memory]]:
    """Each run once: "clean" without noise, "none" with it, and those of the guards."""
    folder, found = tmp_path_factory.mktemp("unbroken"), {}

    def make(name: str) -> tuple[Path, Fitted, Memory]:
        if name not in found:
            job, memory = poisoned_job(folder, GUARDS.get(name, None_())), Memory()
            fitted = run(job, folder / name, prepared(job) if name == "clean" else None, memory)
            found[name] = folder / name, fitted, memory
        return found[name]

    return make


@pytest.mark.parametrize("name", GUARDS)
def test_a_poisoned_run_ends_like_a_clean_one(name: str, unbroken: Any) -> None:
    folder, fitted, _ = unbroken(name)
    clean = held_out(unbroken("clean")[1])
    assert abs(held_out(fitted) - clean) <= 0.01 * clean
    (line,) = lines(folder)
    assert line["what"] == "spike"
    assert line["action"] == name
    (worst,) = line["worst"]
    assert set(worst["documents"]) <= set(NOISE)
    first, last = line["samples"]
    assert line["rows"] == fitted.supply.steps.order(torch.arange(first, last).numpy()).tolist()
    assert worst["row"] == line["rows"][worst["sample"] - first]
    counted = fitted.decisions.counted()
    assert counted["decisions"] == {name: 1}
    assert counted["samples_not_learned"] == (4 if name in ("skip", "lower_lr") else 0)
    assert counted["samples_left_out"] == (12 if name == "rewind" else 0)


@pytest.mark.parametrize("name", ["skip", "lower_lr", "rewind"])
def test_a_second_run_decides_the_same(name: str, unbroken: Any, tmp_path: Path) -> None:
    folder, fitted, memory = unbroken(name)
    again = Memory()
    repeated = run(poisoned_job(tmp_path, GUARDS[name]), tmp_path / "run", tracker=again)
    assert (tmp_path / "run" / decisions.FILE).read_bytes() == (folder / decisions.FILE).read_bytes()
    assert again.curve() == memory.curve()
    same(weights(repeated), weights(fitted))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", ["skip", "lower_lr"])
@pytest.mark.parametrize("stop", [27, 31])
def test_a_run_that_goes_on_has_its_window_and_its_rate(name: str, stop: int, unbroken: Any, tmp_path: Path) -> None:
    folder, fitted, memory = unbroken(name)
    again = Memory()
    for steps in (stop, STEPS):
        repeated = run(poisoned_job(tmp_path, GUARDS[name], trainer__max_steps=steps), tmp_path / "run", tracker=again)
    assert lines(tmp_path / "run") == lines(folder)
    assert again.curve() == memory.curve()
    same(weights(repeated), weights(fitted))


@pytest.mark.parametrize("moment", ["written down", "before a checkpoint is deleted", "gone on"])
def test_killed_between_detection_and_rewind(moment: str, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fitted, memory = unbroken("rewind")
    again, job = Memory(), poisoned_job(tmp_path, GUARDS["rewind"])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "written down":
            add = decisions.Decisions.add

            def dying(self: Any, *arguments: Any) -> None:
                add(self, *arguments)
                raise Killed

            patch.setattr(decisions.Decisions, "add", dying)
        elif moment == "before a checkpoint is deleted":

            def refuse(path: Path) -> None:
                raise Killed

            patch.setattr(decisions, "discard", refuse)
            job = poisoned_job(tmp_path, Rewind(**WATCH, **REWIND | {"back": 6}))
        else:
            log = Memory.log

            def late(self: Memory, step: int, metrics: dict[str, float]) -> None:
                log(self, step, metrics)
                if step == 33:
                    raise Killed

            patch.setattr(Memory, "log", late)
        run(job, tmp_path / "run", tracker=again)
    repeated = run(job, tmp_path / "run", tracker=again)
    if moment == "before a checkpoint is deleted":  # it went further back: another run
        assert lines(tmp_path / "run")[0]["to"] == 20
        return
    assert lines(tmp_path / "run") == lines(folder)
    assert again.curve() == memory.curve()
    same(weights(repeated), weights(fitted))


def test_what_is_decided_again_is_written_once(unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the decision and before the next checkpoint."""
    log = Memory.log

    def late(self: Memory, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        if step == 32:
            raise Killed

    job = poisoned_job(tmp_path, GUARDS["skip"], trainer__save_every=14)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Memory, "log", late)
        run(job, tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run")] == [30]
    run(job, tmp_path / "run")
    assert lines(tmp_path / "run") == lines(unbroken("skip")[0])


def test_the_file_of_decisions_may_be_lost(unbroken: Any, tmp_path: Path) -> None:
    """What was left out stands in the checkpoints that were written since."""
    job = poisoned_job(tmp_path, GUARDS["rewind"], trainer__max_steps=36)
    run(job, tmp_path / "run")
    (tmp_path / "run" / decisions.FILE).unlink()
    repeated = run(poisoned_job(tmp_path, GUARDS["rewind"]), tmp_path / "run")
    same(weights(repeated), weights(unbroken("rewind")[1]))


def break_a_weight(patch: pytest.MonkeyPatch, step: int) -> None:
    """Once, after a step: as a flipped bit would."""
    make, done = strategy.MeshStrategy.optimizer_step, []

    def breaking(self: Any, *arguments: Any, **options: Any) -> Any:
        found = make(self, *arguments, **options)
        if self._step + 1 == step and not done:
            done.append(step)
            with torch.no_grad():
                next(iter(self.stage.model.parameters())).view(-1)[3] = math.nan
        return found

    patch.setattr(strategy.MeshStrategy, "optimizer_step", breaking)


@pytest.mark.parametrize("step", [22, 20])
def test_a_weight_that_breaks_is_named_and_left_behind(
    step: int, unbroken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 20 writes a checkpoint with it: the run finds that too."""
    break_a_weight(monkeypatch, step)
    guard = Rewind(**WATCH | {"loss_z": None}, back=1, before=0, after=0)
    job = poisoned_job(tmp_path, guard)
    fitted = run(job, tmp_path / "run", prepared(job))
    found = lines(tmp_path / "run")
    assert [line["what"] for line in found] == ["not_finite", "non_finite_weights"][: 1 + (step == 20)]
    assert [line["to"] for line in found] == ([20] if step == 22 else [20, 15])
    assert all(line["broken_weights"] == ["embedding.weight"] for line in found)
    clean = held_out(unbroken("clean")[1])
    assert abs(held_out(fitted) - clean) <= 0.01 * clean


def test_to_skip_does_not_help_a_broken_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_a_weight(monkeypatch, 8)
    with pytest.raises(UserError, match=r"step 9: .*embedding\.weight"):
        run(poisoned_job(tmp_path, GUARDS["skip"]), tmp_path / "run")


def test_a_step_that_is_no_number_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = strategy.MeshStrategy.training_step

    def breaking(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = make(self, batch, batch_idx)
        return loss * math.nan if self._step == 8 else loss

    monkeypatch.setattr(strategy.MeshStrategy, "training_step", breaking)
    run(poisoned_job(tmp_path, GUARDS["skip"], trainer__max_steps=12), tmp_path / "run")
    (line,) = lines(tmp_path / "run")
    assert (line["step"], line["what"], line["loss"], line["action"]) == (9, "not_finite", "nan", "skip")
    json.loads((tmp_path / "run" / decisions.FILE).read_text(), parse_constant=pytest.fail)
    with pytest.raises(UserError, match="step 9: the loss is nan"):
        run(poisoned_job(tmp_path, Report(**WATCH), trainer__max_steps=12), tmp_path / "report")


def test_a_spike_may_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 30: the loss is 3\.\d+ \(.* units from .*the worst: 29"):
        run(poisoned_job(tmp_path, Stop(**WATCH)), tmp_path / "run")
    assert [line["action"] for line in lines(tmp_path / "run")] == ["stop"]


@pytest.mark.parametrize("kind", [Skip, Rewind])
def test_a_guard_does_not_act_for_ever(kind: type[Any], tmp_path: Path) -> None:
    more = {"back": 1, "before": 0, "after": 0} if kind is Rewind else {}
    with pytest.raises(UserError, match=r"acted 2 times .*guard\.limit"):
        run(poisoned_job(tmp_path, kind(**WATCH | {"loss_z": 1.0}, limit=2, **more)), tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 3


def test_rows_are_named_if_asked_for(tmp_path: Path) -> None:
    run(poisoned_job(tmp_path, Report(**WATCH, name_rows=False), trainer__max_steps=30), tmp_path / "run")
    (line,) = lines(tmp_path / "run")
    assert "worst" not in line
    assert len(line["rows"]) == 4


def test_a_clipped_spike_moves_weights_as_far_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors: dict[int, float] = {}
    scale, notes = strategy.scale_, Notes()

    def seen(gradients: Any, factor: torch.Tensor) -> None:
        factors[len(memory.rows) + 1] = float(factor)
        scale(gradients, factor)

    monkeypatch.setattr(strategy, "scale_", seen)
    memory = Memory()
    job = poisoned_job(tmp_path, Clip(**WATCH, factor=0.5), trainer__max_steps=30, optim__clip_norm=None)
    run(job, tmp_path / "run", tracker=memory, notes=notes)
    (line,) = lines(tmp_path / "run")
    assert line["max_norm"] == 0.5 * line["norm_center"]
    assert {step: factor for step, factor in factors.items() if factor != 1} == {
        30: pytest.approx(line["max_norm"] / line["grad_norm"], rel=1e-5)
    }
    assert notes.notes[-1].startswith("step 30: ")


def test_the_rate_is_lower_for_a_while(unbroken: Any) -> None:
    (_, _, slower), (_, _, plain) = unbroken("lower_lr"), unbroken("none")
    ratios = {step: slower.rows[step]["lr"] / plain.rows[step]["lr"] for step in plain.rows}
    assert ratios == {step: 0.5 if 31 <= step <= 35 else 1.0 for step in plain.rows}


def test_an_overflow_of_float16_is_no_spike(tmp_path: Path) -> None:
    job = poisoned_job(
        tmp_path, Skip(**WATCH), precision=Fp16Mixed(init_scale=2.0**24), trainer__max_steps=14, trainer__save_every=None
    )
    fitted = run(job, tmp_path / "run", prepared(job))
    assert fitted.skipped_steps > 2
    assert lines(tmp_path / "run") == []


def test_a_broken_file_of_decisions_is_named(tmp_path: Path) -> None:
    (tmp_path / decisions.FILE).write_text('{"step": 1, "action": "dance"}\n')
    with pytest.raises(UserError, match=r"guard\.jsonl, line 1"):
        run(poisoned_job(tmp_path, None_()), tmp_path, poisoned(poisoned_job(tmp_path, None_())))


# ---- without a run


def guarding(
    folder: Path, guard: GuardSpec, device: str = "cpu", left_out: tuple[tuple[int, int], ...] = (), **changes: Any
) -> Any:
    """A callback with stand-ins for what it does not ask here; `left_out`: of rewinds before."""
    job = poisoned_job(folder, guard, **changes)
    data, world = prepared(job), SimpleNamespace(device=torch.device(device), size=1, broadcast=lambda value: value)
    strategy = SimpleNamespace(world=world, stop_agreed=False, stop_asked=False)
    rewinds = [{"action": "rewind", "step": 9, "to": 5, "left_out": list(one)} for one in left_out]
    made = decisions.Decisions(folder / decisions.FILE, rewinds)
    here = World(torch.device("cpu"))
    supply = RowSupply(job, job.stage.trained(job), data, here, 0, made.left_out)
    watch = make_guard(job, here, None, made)
    return Guarding(watch, made, job, data, supply, strategy, SimpleNamespace(step=0), Notes())  # type: ignore[arg-type]


def test_on_a_gpu_findings_are_read_where_the_run_looks_anyway(tmp_path: Path) -> None:
    """Metrics every 4 steps, an evaluation every 6, a checkpoint every 10, the last step, a signal: and at no other step."""
    settings = {"trainer__log_every": 4, "trainer__eval_every": 6, "trainer__save_every": 10, "trainer__max_steps": 23}
    one, looks = guarding(tmp_path, GUARDS["skip"], "cuda", **settings), []
    one.look = lambda: looks.append(one.progress.step)
    for step in range(1, 24):
        one.progress.step = step
        one.strategy.stop_asked = step == 17
        one.on_train_batch_end(None, None, None, None, 0)
    assert looks == [4, 6, 8, 10, 12, 16, 17, 18, 20, 23]
    one.strategy.world.device = torch.device("cpu")
    one.progress.step = 1
    one.on_train_batch_end(None, None, None, None, 0)
    assert looks[-1] == 1
    assert one.state()["guard"]["rewinds"] == []
    assert len(looks) == 12, "a checkpoint is written after a look"


def test_a_second_rewind_leaves_out_what_it_would_read(tmp_path: Path) -> None:
    """The samples of the steps around, which lie behind those that the first one left out."""
    one = guarding(tmp_path, Rewind(**WATCH, back=4, before=2, after=1), left_out=((20, 32), (60, 64)))
    samples = [one.supply.steps.step(step)[0] for step in range(5, 9)]
    assert one._around(8, one.supply) == [int(samples[0][0]), int(samples[-1][-1]) + 1] == [32, 48]
    assert one._around(14, one.supply) == [56, 76]
    assert one.guard.decisions == 2, "rewinds count against the limit, also where no checkpoint says so"


def test_what_two_rewinds_leave_out_is_counted_once(tmp_path: Path) -> None:
    found = guarding(tmp_path, GUARDS["rewind"], left_out=((20, 32), (28, 40), (60, 64))).decisions
    assert found.left_out == ((20, 40), (60, 64))
    found.lines.append({"action": "skip", "step": 20, "rows": [7, 3, 9, 1], "withheld": True})
    found.lines.append({"action": "report", "step": 21, "rows": [2, 4, 6, 8], "withheld": False})
    counted = found.counted()
    assert (counted["samples_left_out"], counted["samples_not_learned"]) == (24, 4)
    assert counted["decisions"] == {"rewind": 3, "skip": 1, "report": 1}
