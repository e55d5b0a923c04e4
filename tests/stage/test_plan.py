"""stage=plan and parallel=auto, as a user meets them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmfactory.config import rules
from llmfactory.config.compose import compose_job
from llmfactory.core.errors import UserError
from llmfactory.parallel.spec import Auto, Mesh
from llmfactory.run.command import run_command
from llmfactory.stage.choice import choose, legal, machine_of, resolved, with_layout
from llmfactory.stage.plan import PlanJob, draw_layout
from llmfactory.stage.spec import Plan
from llmfactory.stage.workload import train_flops_of, work_of

LARGE = ["model=llama3_8b", "hardware=h100_sxm", "precision=bf16_mixed", "launch=local", "launch.processes=16"]
LARGE += ["trainer.batch_size=64", "data.seq_len=4096"]
TINY = ["model=llama_tiny", "model.n_layers=2", "model.dim=16", "model.ffn.hidden=24", "model.attention.n_heads=2"]
TINY += ["model.vocab_size=300", "data.seq_len=16", "data=text", "data.source.files=[corpus.txt]", "trainer.device=cpu"]
TINY += ["trainer.max_steps=2", "optim.schedule.warmup_steps=1", "trainer.eval_every=null", "trainer.keep_best=false"]
TINY += ["trainer.sample=false", "trainer.progress=false"]


def figures(*line: str, **fields: Any) -> dict[str, Any]:
    job = compose_job([*LARGE, *line, "stage=plan"]).job
    return dict(PlanJob(Plan(**fields)).run(job, None)["plan"])


def test_a_plan_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures("parallel=zero3", "trainer.micro_batch_size=1", "hardware.price_per_hour=2", tokens=1e9)
    assert found["parameters"] == 8030261248
    assert found["rule_of_16_bytes"] == pytest.approx(16 * 8030261248 / 16)
    assert found["rule_of_1_2"] == pytest.approx(1.2 * found["rule_of_16_bytes"])
    assert found["memory_bytes"]["parameters"] == 4 * 8030261248 / 16
    assert found["memory_total_bytes"] == pytest.approx(sum(found["memory_bytes"].values()))
    assert found["days"] == pytest.approx(1e9 / found["tokens_per_second"] / 86400)
    assert found["cost"] == pytest.approx(found["days"] * 24 * 16 * 2)
    assert 0.1 < found["mfu"] < 0.8
    shown = capsys.readouterr().out
    for words in ("16 bytes a parameter", "1.2 times that", "reduce_scatter", "activations", "communication buffers", "cost"):
        assert words in shown


def test_a_plan_without_budget_is_that_of_the_steps() -> None:
    found = figures("parallel=zero3", "trainer.micro_batch_size=1", "trainer.max_steps=10")
    assert found["tokens"] == 10 * 64 * 4096
    assert found["cost"] is None


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures("parallel=ddp")
    assert not found["fits"]
    assert "does not fit" in capsys.readouterr().out


def test_auto_fits_is_legal_and_says_why_not_the_others() -> None:
    job = compose_job([*LARGE, "parallel=auto"]).job
    best, found, _ = choose(job)
    assert best.forecast.fits
    assert rules.check(with_layout(job, best.mesh, best.micro_batch_size)) == []
    assert found.ranking[0] is best
    assert len(found.ranking) >= 10
    settled, lines = resolved(job)
    assert settled.parallel == best.mesh
    assert settled.trainer.micro_batch_size == best.micro_batch_size
    assert sum(line.strip()[:1].isdigit() for line in lines) == 10
    assert sum("rejected: " in line for line in lines) >= 9
    assert any("GiB of" in line for line in lines), "what is faster on paper but does not fit"


def test_auto_keeps_what_is_given() -> None:
    job = compose_job([*LARGE, "parallel=auto", "parallel.timeout_s=77", "trainer.micro_batch_size=2"]).job
    best, _, _ = choose(job)
    assert (best.mesh.timeout_s, best.micro_batch_size) == (77, 2)
    untouched = compose_job([*LARGE, "parallel=zero3"]).job
    assert resolved(untouched) == (untouched, [])


def test_the_rules_are_those_of_composing() -> None:
    job = compose_job([*LARGE, "parallel=auto"]).job
    ask = legal(job)
    assert ask(Mesh(dp_replicate=None), 1) is None
    assert "parallel.loss_parallel" in (ask(Mesh(dp_replicate=None, loss_parallel=True), 1) or "")
    assert "parallel.zero" in (ask(Mesh(dp_shard=None, pp=2), 1) or "")


def test_nothing_fits() -> None:
    job = compose_job([*LARGE, "model=llama3_1_405b", "parallel=auto", "launch.processes=2"]).job
    with pytest.raises(UserError, match="use more processes"):
        choose(job)


def test_hardware_without_the_format_is_refused() -> None:
    with pytest.raises(UserError, match="precision=fp16_mixed"):
        machine_of(compose_job([*LARGE, "hardware=v100", "parallel=zero3"]).job)


def test_a_layout_that_may_not_run_is_not_planned() -> None:
    job = compose_job([*LARGE, "parallel=pp_1f1b", "trainer.micro_batch_size=64", "stage=plan"]).job
    with pytest.raises(UserError, match="may not run"):
        PlanJob(Plan()).run(job, None)


def test_measured_messages_change_the_plan(tmp_path: Path) -> None:
    from llmfactory.parallel.plan.measured import COLLECTIVES, Measurement, Speed

    slow = Measurement("x", "nccl", 8, 8, {name: Speed(0.1, 1e8) for name in COLLECTIVES})
    (tmp_path / "comm.yaml").write_text(yaml.safe_dump(slow.to_plain()))
    line = ["parallel=tp", "launch.processes=2", "trainer.micro_batch_size=8"]
    fast = figures(*line)
    measured = figures("hardware=measured", f"hardware.file={tmp_path / 'comm.yaml'}", "hardware.device=h100_sxm", *line)
    assert measured["seconds"]["tp"] > 10 * fast["seconds"]["tp"]
    assert measured["memory_bytes"] == fast["memory_bytes"]


def test_only_layouts_of_several_processes_are_drawn() -> None:
    assert draw_layout(compose_job(["parallel=single"]).job) is None
    assert "<svg" in (draw_layout(compose_job([*LARGE, "parallel=zero3"]).job) or "")


def test_a_named_plan_leaves_a_report_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = [*LARGE, "stage=plan", "parallel=3d", "launch.processes=1024", "trainer.batch_size=1024"]
    assert run_command([*line, "trainer.micro_batch_size=1", "name=plan"]) == 0
    folder = tmp_path / "outputs" / "plan"
    assert json.loads((folder / "result.json").read_text())["plan"]["processes"] == 1024
    page = (folder / "report.html").read_text()
    assert "communication buffers" in page
    assert "<svg" in page
    assert (folder / "layout.svg").read_text() in page


def test_the_table_of_published_runs_is_what_plans_say() -> None:
    """All published layouts fit, and none is off by a factor of two."""
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("planning", root / "benchmarks" / "planning.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planning"] = module
    spec.loader.exec_module(module)
    table = module.table()
    assert table in (root / "docs" / "planning.md").read_text(encoding="utf-8"), "python -m benchmarks.planning writes it anew"
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[4] == "yes", line
        assert 0.5 < float(cells[7]) < 2, line


@pytest.mark.dist
@pytest.mark.slow
def test_auto_really_runs_the_layout_that_it_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"a line about the number {number}" for number in range(400)))
    line = [*TINY, "parallel=auto", "hardware=cpu", "launch=local", "launch.processes=4", "name=auto"]
    assert run_command(line) == 0
    config = yaml.safe_load((tmp_path / "outputs" / "auto" / "config.yaml").read_text())
    assert "type" not in config["parallel"] or config["parallel"]["type"] == "mesh"
    assert (
        config["parallel"]["pp"]
        * config["parallel"]["dp_replicate"]
        * config["parallel"]["dp_shard"]
        * config["parallel"]["cp"]
        * config["parallel"]["tp"]
        == 4
    )
    assert config["trainer"]["micro_batch_size"] is not None
    assert "<svg" in (tmp_path / "outputs" / "auto" / "report.html").read_text()
    assert "chosen" in (tmp_path / "outputs" / "auto" / "log.txt").read_text()


def test_auto_is_no_mesh_until_it_is_resolved() -> None:
    job = compose_job(["parallel=auto", "launch=local", "launch.processes=4"]).job
    assert isinstance(job.parallel, Auto)
    assert job.parallel.mesh() == Mesh(dp_replicate=None)


def test_frozen_weights_have_neither_gradients_nor_state() -> None:
    """Of a step with adapters: no gradient of a frozen matrix, a third of the work with it."""
    size = ["model=llama_tiny", "data.seq_len=32", "trainer.batch_size=4"]
    whole, part = (work_of(compose_job([*size, f"peft={method}"]).job, is_cpu=True) for method in ("none", "lora"))
    adapters = part.parameters - whole.parameters
    assert part.trained_parameters == adapters > 0
    assert whole.trained_parameters == whole.parameters
    products = sum(piece.products for piece in whole.pieces)
    assert part.flops == pytest.approx(whole.flops + part.tokens * (6 * adapters - 2 * products))
    memory = [figures("parallel=zero3", "trainer.micro_batch_size=1", f"peft={one}")["memory_bytes"] for one in ("none", "lora")]
    assert memory[1]["gradients"] < memory[0]["gradients"] / 100
    assert memory[1]["optimizer"] < memory[0]["optimizer"] / 100
    assert memory[1]["parameters"] > memory[0]["parameters"]
    assert train_flops_of(compose_job([*size, "peft=lora"]).job) == pytest.approx(part.flops / part.tokens)


def test_a_reference_is_asked_and_not_trained() -> None:
    """A frozen copy takes room and a forward pass; it is neither part of the model nor learns."""
    line = [
        "model=llama_tiny",
        "stage=preference",
        "data=preference",
        "data.source.files=[pairs.jsonl]",
        "data.form.max_tokens=256",
    ]
    copied, alone = (work_of(compose_job([*line, f"stage.reference={one}"]).job, is_cpu=True) for one in ("copy", "precomputed"))
    assert copied.parameters == copied.trained_parameters == alone.parameters == alone.trained_parameters
    assert sum(one.elements for one in copied.weights) == 2 * alone.parameters
    pairs = sum(piece.pair_products * piece.seen for piece in alone.pieces) * alone.seq_len
    forward = 2.0 * (sum(piece.products for piece in alone.pieces) + pairs)
    assert copied.flops == pytest.approx(alone.flops + alone.tokens * forward)
