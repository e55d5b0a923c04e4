"""Every number of a device changes the plan that it should change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llmfactory.config.compose import compose_job
from llmfactory.config.register import options
from llmfactory.parallel.plan.measured import COLLECTIVES, Measurement, Speed
from llmfactory.parallel.plan.spec import Accelerator
from llmfactory.stage import choice
from llmfactory.stage.plan import PlanJob
from llmfactory.stage.spec import Plan

LINE = ["model=llama_tiny", "stage=plan", "launch=local", "launch.processes=16", "trainer.batch_size=32"]
LINE += ["trainer.micro_batch_size=2", "hardware=h100_sxm"]
TENSOR, SHARED = ["parallel=tp", "parallel.tp=2"], ["parallel=ddp"]


def plan(*line: str) -> dict[str, Any]:
    return dict(PlanJob(Plan()).run(compose_job([*LINE, *line]).job, None)["plan"])


@pytest.mark.parametrize(
    ("field", "value", "line", "figure"),
    [
        ("memory_gib", 40, SHARED, "memory_limit_bytes"),
        ("usable", 0.5, SHARED, "memory_limit_bytes"),
        ("fp64_tflops", 0.001, [*SHARED, "precision=fp64"], "seconds_per_step"),
        ("fp32_tflops", 0.001, SHARED, "seconds_per_step"),
        ("bf16_tflops", 0.001, [*SHARED, "precision=bf16_mixed"], "seconds_per_step"),
        ("fp16_tflops", 0.001, [*SHARED, "precision=fp16_mixed"], "seconds_per_step"),
        ("efficiency", 0.1, [*SHARED, "hardware.fp32_tflops=0.001"], "seconds_per_step"),
        ("memory_gb_per_s", 1, SHARED, "seconds_per_step"),
        ("devices_per_node", 1, TENSOR, "seconds_per_step"),
        ("link_gb_per_s", 0.1, TENSOR, "seconds_per_step"),
        ("link_latency_us", 1000, TENSOR, "seconds_per_step"),
        ("network_gb_per_s", 0.001, SHARED, "seconds_per_step"),
        ("network_latency_us", 100000, SHARED, "seconds_per_step"),
        ("host_gb_per_s", 0.001, ["parallel=offload"], "seconds_per_step"),
        ("price_per_hour", 2.5, SHARED, "cost"),
    ],
)
def test_a_number_changes_the_plan(field: str, value: float, line: list[str], figure: str) -> None:
    assert plan(*line)[figure] != plan(*line, f"hardware.{field}={value}")[figure]


def test_names_and_price_per_hour_of_what_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "device_here", lambda: "NVIDIA H200")
    job = compose_job([*LINE, *SHARED, "hardware=detected", "hardware.price_per_hour=3"]).job
    found = choice.machine_of(job)
    assert (found.name, found.price_per_hour) == ("h200", 3)
    assert found.memory > choice.machine_of(compose_job([*LINE, *SHARED]).job).memory


def test_file_device_and_price_per_hour_of_what_is_measured(tmp_path: Path) -> None:
    slow = Measurement("x", "nccl", 8, 8, {name: Speed(0.1, 1e8) for name in COLLECTIVES})
    (tmp_path / "comm.yaml").write_text(yaml.safe_dump(slow.to_plain()))
    line = ["hardware=measured", f"hardware.file={tmp_path / 'comm.yaml'}", "hardware.price_per_hour=4"]
    job = compose_job([*LINE, *TENSOR, *line, "hardware.device=a100_40"]).job
    found = choice.machine_of(job)
    assert (found.name, found.price_per_hour, found.measured) == ("a100_40", 4, slow)


def test_backend_and_timeout_s_of_auto() -> None:
    job = compose_job([*LINE, "parallel=auto", "parallel.backend=gloo", "parallel.timeout_s=5"]).job
    mesh = choice.question_of(job).base
    assert (mesh.backend.name, mesh.timeout_s) == ("gloo", 5)


def test_tokens_are_what_a_plan_costs() -> None:
    job = compose_job([*LINE, *SHARED]).job
    few, many = (PlanJob(Plan(tokens=tokens)).run(job, None)["plan"]["days"] for tokens in (1e9, 3e9))
    assert many == pytest.approx(3 * few)


def test_every_data_sheet_is_plausible() -> None:
    """Orders of magnitude, and that no number with sparsity has slipped in: twice float16 is more than any of these devices has."""
    for option in options("hardware"):
        spec = compose_job([f"hardware={option}", *(["hardware.file=x"] if option == "measured" else [])]).job.hardware
        if not isinstance(spec, Accelerator) or option == "cpu":
            continue
        half = spec.bf16_tflops or spec.fp16_tflops
        assert half is not None
        assert spec.fp32_tflops <= half <= 1307.4, option
        assert spec.network_gb_per_s <= spec.link_gb_per_s < spec.memory_gb_per_s, option
        assert spec.names, option
