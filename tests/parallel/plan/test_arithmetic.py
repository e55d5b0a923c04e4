"""Layouts in numbers: groups, pipelines, memory by ZeRO stage, times of messages; against formulas written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.config.register import options
from llmfactory.core.errors import UserError
from llmfactory.parallel import schedule as tables
from llmfactory.parallel.plan.accelerator import Machine, machine
from llmfactory.parallel.plan.arrangement import arrange, bubble, in_flight
from llmfactory.parallel.plan.detected import option_of
from llmfactory.parallel.plan.drawing import draw, place
from llmfactory.parallel.plan.forecast import Forecast, forecast
from llmfactory.parallel.plan.measured import COLLECTIVES, Measurement, Speed, read_measurement
from llmfactory.parallel.plan.spec import Accelerator
from llmfactory.parallel.schedule import Work as Doing
from llmfactory.parallel.spec import Mesh, Offload, Schedule, Zero
from llmfactory.stage.workload import work_of

LLAMA = ["model=llama_tiny", "model.n_layers=8", "model/head=lm", "trainer.batch_size=64", "stage=describe"]


def h100() -> Machine:
    spec = compose_job(["hardware=h100_sxm", "stage=describe"]).job.hardware
    assert isinstance(spec, Accelerator)
    return machine(spec, "h100")


def seen(mesh: Mesh, world: int, *line: str, size: int | None = 1, on: Machine | None = None) -> Forecast:
    return forecast(mesh, world, size, work_of(compose_job([*LLAMA, *line]).job, False), on or h100())


def test_ranks_of_groups() -> None:
    at = arrange(Mesh(pp=2, dp_replicate=2, dp_shard=2, cp=2, tp=2), 32)
    assert at.group("tp").ranks(5) == [4, 5]
    assert at.group("cp").ranks(5) == [5, 7]
    assert at.group("shards").ranks(0) == [0, 2, 4, 6]
    assert at.group("copies").ranks(3) == [3, 11]
    assert at.group("pp").ranks(3) == [3, 19]
    assert [at.group(axis).per_node(8) for axis in ("tp", "shards", "copies", "pp")] == [2, 4, 1, 1]
    assert place(29, at).numbers == {"tp": 1, "cp": 0, "ep": 0, "shards": 2, "copies": 1, "pp": 1}


def test_context_parallel_processes_are_copies_where_nothing_is_shared() -> None:
    at = arrange(Mesh(dp_replicate=2, cp=4, ep=4), 8)
    assert (at.copies, at.shards, at.expert_copies, at.expert_shards) == (8, 1, 2, 1)
    at = arrange(Mesh(dp_shard=2, cp=4, ep=4), 8)
    assert (at.copies, at.shards, at.expert_copies, at.expert_shards) == (1, 8, 1, 2)


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize(("p", "n"), [(2, 4), (4, 8), (4, 16)])
def test_pipelines_hold_and_wait_as_their_tables_say(schedule: Schedule, p: int, n: int) -> None:
    """Forward, and both parts of the backward, take as long; messages take none."""
    mesh = Mesh(pp=p, schedule=schedule)
    v = mesh.stages_per_process
    table = tables.table(schedule, p, v, n)
    held, ready, clocks = [0] * p, {}, [0.0] * p
    left = [[one for one in actions if one.work.value in "FBIW"] for actions in table]
    most = [0] * p
    last = p * v - 1
    while any(left):
        for rank in range(p):
            while left[rank]:
                work, stage, micro = left[rank][0]
                if work is Doing.forward:
                    needs = ("F", stage - 1, micro) if stage else None
                elif work is Doing.weight:
                    needs = ("I", stage, micro)
                else:
                    needs = ("I", stage + 1, micro) if stage < last else ("F", stage, micro)
                if needs is not None and needs not in ready:
                    break
                begin = max(clocks[rank], ready.get(needs, 0.0) if needs else 0.0)
                clocks[rank] = begin + (2.0 if work is Doing.backward else 1.0)
                key = "I" if work in (Doing.backward, Doing.input) else work.value
                ready[key, stage, micro] = clocks[rank]
                held[rank] += (work is Doing.forward) - (work in (Doing.backward, Doing.weight))
                most[rank] = max(most[rank], held[rank])
                left[rank].pop(0)
    idle = max(clocks) / (3 * n * v) - 1
    exact = schedule in (Schedule.gpipe, Schedule.one_f_one_b, Schedule.interleaved)
    assert bubble(p, mesh, n) == pytest.approx(idle, abs=1e-9 if exact else 0.12)
    for rank in range(p):
        planned = in_flight(rank, p, mesh, n)
        assert planned == pytest.approx(most[rank] / v, abs=0.0 if exact else 1.0), (rank, most)


def test_zero_shares_what_its_stages_share() -> None:
    """Rajbhandari et al. 2020, figure 1, with weights and gradients in float32, and FSDP's whole copy while weights are used."""
    plain = seen(Mesh(dp_replicate=None), 8).fullest.memory
    shared = {zero: seen(Mesh(dp_shard=None, zero=zero), 8).fullest.memory for zero in Zero}
    for memory in shared.values():
        assert memory.parameters == plain.parameters / 8
        assert memory.gradients == plain.gradients / 8
        assert memory.optimizer == pytest.approx(plain.optimizer / 8, rel=1e-3)
    assert shared[Zero.optimizer].buffers > shared[Zero.gradients].buffers > shared[Zero.parameters].buffers
    assert plain.optimizer == pytest.approx(2 * plain.parameters, rel=1e-3)
    assert shared[Zero.optimizer].buffers == 2 * plain.parameters  # whole weights, and whole gradients that add up


def test_tensor_parallelism_cuts_what_it_cuts() -> None:
    one, two = seen(Mesh(), 1), seen(Mesh(tp=2), 2)
    cut = seen(Mesh(tp=2, sequence_parallel=True, loss_parallel=True), 2)
    weights = sum(math.prod(w.local(2)) for w in work_of(compose_job(LLAMA).job, False).weights)
    assert two.fullest.memory.parameters == 4 * weights
    assert one.fullest.memory.activations > two.fullest.memory.activations > cut.fullest.memory.activations
    assert cut.fullest.memory.logits < two.fullest.memory.logits


def test_offload_and_recomputation_trade_memory() -> None:
    plain = seen(Mesh(dp_shard=None), 4)
    away, disk = (seen(Mesh(dp_shard=None, offload=where), 4) for where in (Offload.cpu, Offload.disk))
    state = plain.fullest.memory
    assert away.fullest.memory.host == state.parameters + state.gradients + state.optimizer
    assert disk.fullest.memory.host == state.optimizer
    again = seen(Mesh(dp_shard=None, recompute=True), 4)
    assert again.fullest.memory.activations < state.activations / 2
    kept, least = state.activations, again.fullest.memory.activations
    half = seen(Mesh(dp_shard=None, recompute=True, recompute_every=2), 4).fullest.memory.activations
    assert least < half < kept
    budgets = [Mesh(dp_shard=None, recompute=True, recompute_budget_mb=mb) for mb in (1e-6, kept / 2e6, 1e9)]
    tight, middle, wide = (seen(budget, 4).fullest.memory.activations for budget in budgets)
    assert tight == pytest.approx(least)
    assert least < middle < wide
    assert seen(Mesh(dp_shard=None, recompute=True, recompute_keep=["products"]), 4).fullest.memory.activations == kept
    assert again.seconds > plain.seconds
    assert away.seconds > plain.seconds


def test_a_pipeline_s_first_process_holds_most() -> None:
    found = seen(Mesh(pp=4, dp_replicate=None), 8)
    first, last = found.processes[0], found.processes[-1]
    assert first.memory.activations > 3 * last.memory.activations
    assert last.memory.logits > first.memory.logits == 0
    assert found.slowest.seconds.idle == pytest.approx(
        3
        / 32
        * (found.slowest.seconds.compute + sum(one for group, one in found.slowest.seconds.exposed.items() if group != "pp")),
        rel=1e-6,
    )


def test_a_message_takes_latency_and_bandwidth() -> None:
    device = h100()
    within = device.seconds("all_gather", 450e9, 8, 8)
    assert within == pytest.approx(1.0 + 3 * 5e-6)
    assert device.seconds("all_gather", 50e9, 16, 1) == pytest.approx(1.0 + 4 * 10e-6)
    assert device.seconds("all_gather", 400e9, 64, 8) == pytest.approx(1.0 + 6 * 10e-6)  # eight adapters share a ring
    assert device.seconds("all_reduce", 0.0, 8, 8) == device.seconds("all_reduce", 1.0, 1, 1) == 0.0


def measurement(**changes: Any) -> Measurement:
    speeds = {name: Speed(1e-3, 1e6) for name in COLLECTIVES}
    return Measurement(
        **{"device": "cpu", "backend": "gloo", "processes": 4, "devices_per_node": 4, "collectives": speeds, **changes}
    )


def test_measured_speeds_count_where_they_were_measured(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "comm.yaml").write_text(yaml.safe_dump(measurement().to_plain()))
    read = read_measurement(tmp_path / "comm.yaml")
    assert read == measurement()
    spec = compose_job(["hardware=h100_sxm", "stage=describe"]).job.hardware
    assert isinstance(spec, Accelerator)
    device = machine(spec, "h100", measured=read)
    assert device.devices_per_node == 4
    assert device.seconds("all_gather", 1e6, 4, 4) == pytest.approx(1.001)
    assert device.seconds("all_gather", 200e9, 8, 4) == pytest.approx(1.0 + 3 * 10e-6)  # the network was not measured


@pytest.mark.parametrize(
    ("text", "reason"),
    [("- 1", "no file of stage=bench_comm"), ("device: a", "lacks"), ("{", "cannot be read"), (None, "cannot be read")],
)
def test_a_file_that_is_no_measurement_is_named(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "comm.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=reason):
        read_measurement(path)


def test_devices_are_known_by_their_names() -> None:
    known = {}
    for option in options("hardware"):
        if option not in ("detected", "measured"):
            spec = compose_job([f"hardware={option}", "stage=describe"]).job.hardware
            assert isinstance(spec, Accelerator)
            known[option] = spec.names
    assert option_of("NVIDIA H100 80GB HBM3", known) == "h100_sxm"
    assert option_of("NVIDIA A100-SXM4-80GB", known) == "a100_80"
    assert option_of("cpu", known) == "cpu"
    with pytest.raises(UserError, match="hardware=h100_sxm"):
        option_of("Abacus 1", known)


def test_the_picture_names_every_process_that_it_draws() -> None:
    job = compose_job(LLAMA).job
    picture = draw(arrange(Mesh(pp=2, dp_shard=2, tp=4), 16), work_of(job, False), 8)
    assert all(f">rank {rank}<" in picture for rank in range(16))
    assert "machine 1" in picture
    assert "tensor: groups of 4, over the links of a machine" in picture
    assert "pipeline: groups of 2, over the network" in picture
    assert "stage 1: 4 layers, norm, head" in picture
    many = draw(arrange(Mesh(dp_shard=None), 1024), work_of(job, False), 8)
    assert "120 machines more" in many
