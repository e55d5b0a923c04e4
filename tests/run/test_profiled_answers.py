"""stage=profile of stages whose answers the model writes: they are written in their step, and counted in with those that learn from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rl_job import curve, learning
from toy_job import Memory, Notes

from llmfactory.parallel.mesh import World
from llmfactory.run.fit import fit
from llmfactory.run.phases import PhaseClock, StepTime
from llmfactory.run.profile_figures import Measured, figures_of, times_of
from llmfactory.run.profiling import Profiler
from llmfactory.run.trace import Peak
from llmfactory.stage.profile_spec import Profile
from llmfactory.stage.rows import read_data

CPU = World(torch.device("cpu"))


@pytest.mark.parametrize("stage", ["ppo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_answers_are_written_in_their_step(stage: str, tmp_path: Path) -> None:
    """Not one step ahead, by weights that are not yet those of the run without profile."""
    own = ["stage.epochs=2"] if stage == "ppo" else ["stage.group=4"]
    job = learning(tmp_path, stage, "trainer.max_steps=8", "trainer.batch_size=8", "stage.objective.kl_coef=0.1", *own)
    data, plain, profiled = read_data(job, None, job.stage.objective.specials()), Memory(), Memory()  # type: ignore[attr-defined]
    for name in ("plain", "profiled", "scratch"):
        (tmp_path / name).mkdir()
    fit(job, data, tmp_path / "plain", plain, Notes())
    spec = Profile(of=job.stage, warm_up=1, measured=4, stacks=False)
    profiler = Profiler(spec, CPU, tmp_path / "profiled", tmp_path / "scratch")
    fit(job, data, tmp_path / "profiled", profiled, Notes(), profiler=profiler)
    assert curve(profiled) == {step: row for step, row in curve(plain).items() if step <= 6}
    measured = profiler.measured()
    found = figures_of(job, data, CPU, [measured])
    assert found["flops_per_step"] is None
    assert found["phases"][0]["data"] == pytest.approx(sum(step.phases["data"] for step in measured.steps) / 4)
    if stage == "ppo":
        written = [step.phases["data"] > 0.2 * step.total for step in measured.steps]
        assert written == [False, True, False, True], "the first step after the warm-up is the second of its iteration"


def test_every_step_counts_where_some_write_for_the_others() -> None:
    def step(total: float) -> StepTime:
        return StepTime(total, {"data": total - 1.0, "forward": 1.0}, ())

    steps = [step(total) for total in (9.0, 1.0, 1.0, 1.0)]
    one = Measured(0, steps, 100.0, [], 0.0, 0, 0, Peak("forward", 0, 0, 0), None)
    assert times_of([one], on_gpu=False, every=True)["phases"][0]["data"] == 2.0
    assert times_of([one], on_gpu=False, every=True)["seconds_per_step"] == 3.0
    assert times_of([one], on_gpu=False)["phases"][0]["data"] == 0.0


def test_an_error_in_the_traced_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the profiler is ended, which would crash the process otherwise."""
    job = learning(tmp_path, "grpo", "trainer.max_steps=8", "trainer.batch_size=8", "stage.group=4")
    data = read_data(job, None, job.stage.objective.specials())  # type: ignore[attr-defined]
    profiler = Profiler(Profile(of=job.stage, warm_up=1, measured=1, stacks=False), CPU, tmp_path, tmp_path)
    begin = PhaseClock.begin

    def broken(self: PhaseClock, phase: str) -> None:
        if phase == "backward" and profiler._profile is not None:
            raise RuntimeError("broken")
        begin(self, phase)

    monkeypatch.setattr(PhaseClock, "begin", broken)
    with pytest.raises(RuntimeError, match="broken"):
        fit(job, data, tmp_path, Memory(), Notes(), profiler=profiler)
    assert profiler._profile is None
    assert not torch.autograd.profiler._is_profiler_enabled
