"""stage=profile: what is measured adds up, belongs to the parts that it is said to belong to, and changes nothing."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import pool
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_job import Memory, Notes, prepared, toy_job, write_text

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.parallel.mesh import World, open_world
from llmfactory.parallel.spec import Mesh, Zero
from llmfactory.run.command import run_command
from llmfactory.run.fit import fit
from llmfactory.run.flame import collapsed, picture, stacks, tree
from llmfactory.run.phases import PhaseClock, StepTime, apart
from llmfactory.run.profile_figures import Measured, figures_of, middle, parts_of, tables_of, times_of
from llmfactory.run.profiling import Profiler
from llmfactory.run.trace import Peak, Trace, nested, peak_of, read_trace
from llmfactory.stage.part_flops import flops_by_part, part_of
from llmfactory.stage.plan import aligned
from llmfactory.stage.profile_spec import Profile
from llmfactory.stage.workload import built, train_flops_of

CPU = World(torch.device("cpu"))


class Profiled:
    """A small training, profiled once for all tests."""

    def __init__(self, folder: Path) -> None:
        changes: dict[str, Any] = {"trainer__micro_batch_size": 4, "trainer__max_steps": 20, "trainer__eval_every": 2}
        self.job = toy_job(folder, **changes)
        self.data, self.tracker = prepared(self.job), Memory()
        self.folder = folder / "profiled"
        self.folder.mkdir()
        (folder / "scratch").mkdir()
        spec = Profile(of=self.job.stage, warm_up=2, measured=5)
        self.profiler = Profiler(spec, CPU, self.folder, folder / "scratch")
        fit(self.job, self.data, self.folder, self.tracker, Notes(), profiler=self.profiler)
        self.measured = self.profiler.measured()
        self.figures = figures_of(self.job, self.data, CPU, [self.measured])
        self.trace = read_trace(self.folder / "trace_0.json.gz")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profiled]:
    return Profiled(tmp_path_factory.mktemp("profile"))


def test_nothing_that_is_computed_differs(profiled: Profiled, tmp_path: Path) -> None:
    """Losses, gradient norms and rates of all steps, to the last digit; the same weights."""
    plain = Memory()
    fit(profiled.job, profiled.data, tmp_path, plain, Notes())
    rows = {step: {k: v for k, v in row.items() if not k.startswith("held_out")} for step, row in plain.curve().items()}
    assert list(profiled.tracker.curve()) == list(range(1, 10))
    assert profiled.tracker.curve() == {step: rows[step] for step in range(1, 10)}


def test_it_makes_as_many_steps_as_it_was_asked_for(profiled: Profiled) -> None:
    assert len(profiled.measured.steps) == 5
    assert profiled.profiler.done == 2 + 5 + 1 + 1
    assert not (profiled.folder / "checkpoints").exists() or not list((profiled.folder / "checkpoints").iterdir())


def test_phases_fill_the_step(profiled: Profiled) -> None:
    for step in profiled.measured.steps:
        assert sum(step.phases.values()) == pytest.approx(step.total, rel=0.02, abs=1e-3)
        assert all(seconds >= 0 for seconds in step.phases.values())
    phases = profiled.figures["phases"][0]
    assert sum(phases.values()) == pytest.approx(profiled.figures["totals"][0], rel=0.02, abs=1e-3)
    assert min(phases["forward"], phases["backward"], phases["optimizer"], phases["framework"], phases["data"]) > 0
    assert phases["communication"] == phases["waiting"] == 0


def test_every_operation_belongs_to_a_part_and_a_phase(profiled: Profiled) -> None:
    """Each kind of product is found where it is computed: of linear maps in attention and ffn, forward and backward."""
    named = {(node.event["name"], node.phase, node.part) for node in profiled.trace.nodes}
    for part in ("attention", "ffn"):
        for phase, product in (("forward", "aten::mm"), ("forward", "aten::linear"), ("backward", "aten::mm")):
            found = {(name, where, what) for name, where, what in named if (where, what) == (phase, part)}
            assert any(name == product or "addmm" in name for name, _, _ in found) or product == "aten::linear"
    seconds = profiled.trace.seconds()
    for part in ("attention", "ffn", "norm", "embedding", "head", "rest"):
        assert seconds["forward", part] > 0, part
        assert seconds["backward", part] > 0 or part == "rest"
    whole = sum(seconds.values())
    top = sum(node.event["dur"] for node in profiled.trace.nodes if node.above is None) / 1e6
    assert whole == pytest.approx(top, rel=0.02)
    rows = {row["part"]: row for row in profiled.figures["parts"]}
    scaled = sum(row["forward"] + row["backward"] for row in rows.values())
    assert scaled == pytest.approx(sum(profiled.figures["phases"][0][phase] for phase in ("forward", "backward")), rel=1e-6)


def test_the_peak_is_made_of_what_is_there(profiled: Profiled) -> None:
    memory, job = profiled.figures["memory"][0], profiled.job
    numbers = sum(weight.numel() for weight in built(job).parameters())
    assert memory["weights"] == 4 * numbers
    assert 8 * numbers <= memory["optimizer"] <= 8 * numbers + 8 * 64
    assert memory["total"] == sum(memory[key] for key in ("weights", "gradients", "optimizer", "activations", "rest"))
    assert memory["phase"] in ("forward", "backward")
    assert memory["activations"] > 4 * 4 * 32 * 257  # logits of a micro-batch, or as much
    assert 0 <= memory["gradients"] <= 4 * numbers


def test_files_are_what_other_programs_read(profiled: Profiled) -> None:
    with gzip.open(profiled.folder / "trace_0.json.gz", "rt") as file:
        assert json.load(file)["traceEvents"]
    for line in (profiled.folder / "flame_0.collapsed").read_text().splitlines():
        stack, _, time = line.rpartition(" ")
        assert stack
        assert int(time) > 0
    assert ElementTree.parse(profiled.folder / "flame_0.svg").getroot().tag.endswith("svg")
    shown = "\n".join(line for _, rows in tables_of(profiled.figures) for line in aligned(rows))
    for words in ("forward", "optimizer", "attention", "head + loss", "activations", "whole step"):
        assert words in shown
    assert len(shown.splitlines()) < 30


def test_a_run_that_ends_before_its_profile_says_so(profiled: Profiled, tmp_path: Path) -> None:
    profiler = Profiler(Profile(of=profiled.job.stage), CPU, tmp_path, tmp_path)
    with pytest.raises(UserError, match="ended after 0 steps, and the profile takes 13"):
        profiler.measured()


# ---- operations


@pytest.mark.parametrize(
    "line",
    [
        ["model=llama_tiny"],
        ["model=gpt2_tiny", "peft=lora"],
        ["model=llama_tiny", "model/ffn=moe"],
        ["model=mamba_tiny"],
        ["model=bert_tiny", "stage/objective=masked"],
    ],
    ids=" ".join,
)
def test_operations_of_parts_add_up(line: list[str]) -> None:
    job = compose_job(line).job
    found = flops_by_part(job)
    assert sum(found.values()) == pytest.approx(train_flops_of(job), rel=1e-9)
    assert found["head"] > 0
    assert found["norm"] == 0
    assert train_flops_of(job, 0.15) == pytest.approx(sum(flops_by_part(job, 0.15).values()), rel=1e-9)


def test_operations_are_those_that_torch_counts() -> None:
    """Forward, by part; torch counts all pairs of tokens where a causal model needs half of them."""
    job = compose_job(["model=llama_tiny", "data.seq_len=64"]).job
    found = flops_by_part(job)
    model = job.model.build()
    tokens = torch.zeros(2, 64, dtype=torch.int64)
    batch = {"tokens": tokens, "labels": tokens, "positions": torch.arange(64).expand(2, 64), "segments": tokens + 1}
    names = {name: part for name, module in model.named_modules() if (part := part_of(module)) in ("attention", "ffn")}
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.head(model(tokens, model.context(batch, False)))
    counts = counter.get_flop_counts()
    label = type(model).__name__
    for part in ("attention", "ffn"):
        of_part = [counts[f"{label}.{name}"] for name, which in names.items() if which == part]
        assert len(of_part) == job.model.n_layers
        whole = sum(sum(one.values()) for one in of_part)
        scores = sum(n for one in of_part for op, n in one.items() if "attention" in str(op) or "bmm" in str(op))
        assert found[part] / 3 * tokens.numel() == pytest.approx(whole - scores / 2, rel=1e-9)
    head = sum(counts["Global"].values()) - sum(sum(counts[f"{label}.{name}"].values()) for name in names)
    assert found["head"] / 3 * tokens.numel() == pytest.approx(head, rel=1e-9)


def test_parts_are_known_by_their_folder() -> None:
    model = compose_job(["model=llama_tiny"]).job.model.build()
    assert part_of(model.blocks[0].attention) == "attention"
    assert part_of(model.blocks[0]) == "rest"
    assert part_of(nn.Linear(1, 1)) is None


def step(total: float, *waits: float, forward: float = 0.0) -> StepTime:
    phases = {"data": 0.0, "forward": forward, "backward": 0.0, "optimizer": 0.0, "communication": sum(waits), "framework": 0.0}
    phases["framework"] = total - sum(phases.values())
    return StepTime(total, phases, waits)


def test_waiting_is_what_exceeds_the_last_one_to_come() -> None:
    first, second = apart([step(10.0, 3.0, 1.0), step(10.0, 1.0, 2.0)])
    assert (first["communication"], first["waiting"]) == (2.0, 2.0)
    assert (second["communication"], second["waiting"]) == (2.0, 1.0)
    assert sum(first.values()) == sum(second.values()) == 10.0


def test_different_operations_are_not_compared() -> None:
    """Not as many, or those of a pipeline's stages."""
    for alike, waits in ((True, (1.0,)), (False, (1.0, 0.0))):
        one, other = process(0, step(10.0, 3.0, 1.0)), process(1, step(10.0, *waits))
        found = times_of([one, other], on_gpu=False, alike=alike)
        assert [mine["communication"] for mine in found["phases"]] == [4.0, 1.0]
        assert [mine["waiting"] for mine in found["phases"]] == [0.0, 0.0]
        assert not found["told_apart"]


def process(rank: int, *steps: StepTime) -> Measured:
    parts = [("forward", "attention", 1.0), ("forward", "communication", 7.0), ("backward", "ffn", 2.0)]
    return Measured(rank, list(steps), 100.0, parts, 0.0, 0, 0, Peak("forward", 0, 0, 0), None)


def test_the_slowest_process_waits_least() -> None:
    """And a step that took long for another reason than the training does not count."""
    fast = [step(10.0, 6.0, forward=4.0)] * 7 + [step(90.0, 6.0)]
    slow = [step(10.0, 1.0, forward=8.0)] * 7 + [step(90.0, 1.0)]
    found = times_of([process(0, *fast), process(1, *slow)], on_gpu=False)
    assert found["seconds_per_step"] == 10.0
    assert found["slowest"] == 1
    assert found["phases"][0]["waiting"] == 5.0
    assert found["phases"][0]["communication"] == 1.0
    assert [sum(phases.values()) for phases in found["phases"]] == [10.0, 10.0] == found["totals"]
    assert middle([[step(n)] for n in (5.0, 1.0, 3.0, 2.0)]) == [3, 2]


def test_times_of_parts_are_scaled_to_untraced_ones() -> None:
    one = process(0, step(10.0, forward=4.0))
    found = {"phases": [{"forward": 4.0, "backward": 3.0}]}
    rows = parts_of([one], found, {**dict.fromkeys(("mixer", "norm", "position", "embedding", "head", "rest"), 0.0),
                                   "attention": 8.0, "ffn": 6.0}, peak=1000.0, on_gpu=False)  # fmt: skip
    by = {row["part"]: row for row in rows}
    assert by["attention"]["forward"] == 4.0
    assert by["ffn"]["backward"] == 3.0
    assert by["attention"]["flops_per_second"] == 200.0
    assert by["attention"]["share_of_peak"] == 0.2
    assert by["ffn"]["flops_per_second"] == 200.0
    assert set(by) == {"attention", "ffn"}


def test_the_clock_takes_what_blocks_out_of_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = PhaseClock(torch.device("cpu"))
    clock.start()
    batches = clock.fetching(iter([1, 2]))
    for phase, seconds in (("forward", 2.0), ("backward", 3.0), ("optimizer", 1.0), ("framework", 0.5)):
        clock.begin(phase)
        now[0] += seconds
        if phase == "backward":
            clock.blocked(1.25)
    assert next(batches) == 1
    found = clock.lap()
    assert found.phases == {
        "data": 0.0, "forward": 2.0, "backward": 1.75, "optimizer": 1.0, "communication": 1.25, "framework": 0.5
    }  # fmt: skip
    assert found.total == 6.5
    assert found.gap() == 0.0
    assert found.waits == (1.25,)
    assert clock.lap().total == 0.0


def event(name: str, ts: float, dur: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "ts": ts, "dur": dur, "tid": 1, "cat": "cpu_op", "args": {}, **more}


def test_a_range_that_outlasts_its_opener_stands_beside_it() -> None:
    events = [event("loop", 0, 100), event("__enter__", 10, 5), event("range", 12, 50), event("op", 20, 10)]
    found = {node.event["name"]: node for node in nested(events)}
    assert found["range"].above is found["loop"]
    assert found["op"].above is found["range"]
    assert found["loop"].own == 100 - 5 - 50
    assert found["range"].own == 40


def test_what_is_on_its_way_meanwhile_holds_nothing(tmp_path: Path) -> None:
    """Of a message of gloo, torch notes a range on the thread that sends it, until it has arrived."""
    ops = [event("forward", 0, 100, cat="user_annotation"), event("c10d::send", 10, 4), event("aten::mm", 30, 40)]
    meanwhile = event("gloo:send", 11, 80, cat="user_annotation")
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": [*ops, meanwhile]}))
    found = read_trace(tmp_path / "trace.json").seconds()
    assert found == pytest.approx({("forward", "rest"): 96e-6, ("forward", "communication"): 4e-6})


def test_stacks_are_written_as_flame_graphs_want_them() -> None:
    nodes = nested([event("/x/site-packages/torch/a.py(1): f", 0, 100), event("aten::mm", 10, 60), event("b;c", 80, 10)])
    found = stacks([*nodes, *nested([event("other", 200, 5)])])
    assert found == {"torch/a.py(1): f": 30, "torch/a.py(1): f;aten::mm": 60, "torch/a.py(1): f;b,c": 10, "other": 5}
    assert collapsed(found).splitlines()[0] == "other 5"
    assert tree(found).time == 105
    assert tree(found).below["torch/a.py(1): f"].time == 100
    assert ElementTree.fromstring(picture(found)).tag.endswith("svg")
    assert picture({}) == ""


def test_memory_is_told_by_when_it_came_and_went() -> None:
    def memory(ts: float, address: int, size: int) -> dict[str, Any]:
        return {"name": "[memory]", "ts": ts, "args": {"Device Type": 0, "Addr": address, "Bytes": size}}

    ranges = [("forward", 0, 50), ("backward", 51, 49), ("optimizer", 101, 20)]
    nodes = nested([event(name, ts, dur, cat="user_annotation") for name, ts, dur in ranges])
    for node in nodes:
        node.phase = node.event["name"]
    moments = [memory(1, 1, 100), memory(2, 2, 7), memory(3, 2, -7), memory(4, 3, 20)]
    moments += [memory(60, 4, 30), memory(61, 5, 50), memory(62, 5, -50), memory(70, 1, -100), memory(71, 3, -20)]
    moments += [memory(105, 4, -30)]
    found = peak_of(Trace(nodes=nodes, memory=moments), {4}, torch.device("cpu"))
    assert found == Peak("backward", gradients=30, activations=120, rest=50)


# ---- the command


SMALL = ["model.n_layers=2", "model.dim=16", "model.ffn.hidden=24", "model.attention.n_heads=2", "model.vocab_size=300"]


def test_it_wraps_whatever_the_rest_of_the_command_picks() -> None:
    plain = compose_job(["model=bert_tiny", "stage/objective=masked", "stage.objective.rate=0.2"]).job
    for line in (
        ["stage/objective=masked", "stage.objective.rate=0.2"],
        ["stage/objective@stage.of.objective=masked", "stage.of.objective.rate=0.2"],
    ):
        job = compose_job(["stage=profile", "model=bert_tiny", *line, "stage.measured=4", "stage.stacks=false"]).job
        assert isinstance(job.stage, Profile)
        assert job.stage.of == plain.stage
        assert job.model == plain.model
        assert job.optim == plain.optim
        assert (job.stage.measured, job.stage.stacks, job.stage.steps) == (4, False, 3 + 4 + 1)
    for line in (["stage=profile", "stage.of=sft", "data=pydoc_qa"], ["stage=sft", "data=pydoc_qa", "stage=profile"]):
        assert type(compose_job(line).job.stage.of).__name__ == "Sft"
    assert type(compose_job(["stage=profile", "stage=pretrain"]).job.stage).__name__ == "Pretrain"


def test_a_repair_changes_what_is_profiled() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_job(["stage=profile", "stage.of=evaluate", "init=."])
    repairs = [problem.repair for problem in caught.value.problems]
    assert "stage.of=pretrain" in repairs
    assert not any((repair or "").startswith("stage=") for repair in repairs)


def test_the_command_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    line = ["stage=profile", "stage.warm_up=1", "stage.measured=2", "stage.stacks=false", "name=looked", "data=text", *SMALL]
    line += [
        "data.source.files=[text.txt]",
        "data.source.split_on=---",
        "data.seq_len=16",
        "data.held_out=0",
        "trainer.eval_every=null",
        "trainer.keep_best=false",
        "data.tokenizer.vocab_size=280",
    ]
    line += [f"data.cache={tmp_path}", "data.workers=1", "trainer.device=cpu", "trainer.max_steps=20", "trainer.progress=false"]
    assert run_command([*line, "optim.schedule.warmup_steps=2"]) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    assert "head + loss" in shown
    assert "model FLOPs utilization" in shown
    assert "ui.perfetto.dev" in shown
    folder = tmp_path / "outputs" / "looked"
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["stage"] == "profile"
    assert len(result["profile"]["all_steps"]) == 2
    assert json.loads((folder / "profile.json").read_text())["processes"][0]["peak"]["phase"]
    assert "Parts of the model" in (folder / "report.html").read_text()
    assert {path.name for path in folder.iterdir()} >= {"trace_0.json.gz", "profile.json", "report.html"}
    assert not (folder / "flame_0.svg").exists()
    assert not any(word in shown for word in ("Lightning", "USDT"))


def profiled_here(folder: Path) -> Measured:
    """Called in each of several processes."""
    import torch.distributed as dist

    job = toy_job(folder, parallel=Mesh(dp_shard=2, zero=Zero.parameters), trainer__max_steps=20, model__n_layers=1)
    own = folder / str(dist.get_rank())
    own.mkdir()
    data = prepared(job)
    with open_world(job.parallel, "cpu") as world:
        profiler = Profiler(Profile(of=job.stage, warm_up=1, measured=2, stacks=False), world, own, own)
        fit(job, data, own, Memory(), Notes(), world=world, profiler=profiler)
        return profiler.measured()


@pytest.mark.slow  # that blocking calls are timed, tests/run/test_phases.py has without processes
@pytest.mark.dist
def test_several_processes_wait_for_each_other(tmp_path: Path) -> None:
    prepared(toy_job(tmp_path))
    everyone = pool.run(2, profiled_here, tmp_path)
    found = times_of(everyone, on_gpu=False)
    assert [one.rank for one in everyone] == [0, 1]
    assert found["told_apart"]
    for mine, total in zip(found["phases"], found["totals"], strict=True):
        assert mine["communication"] > 0
        assert mine["waiting"] >= 0
        assert sum(mine.values()) == pytest.approx(total, rel=0.02, abs=1e-3)
    assert min(mine["waiting"] for mine in found["phases"]) < found["seconds_per_step"]
    assert any(part == "communication" for _, part, _ in everyone[0].parts)
    assert (tmp_path / "1" / "trace_1.json.gz").is_file()
