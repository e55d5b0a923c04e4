"""A forecast against what processes really hold and send: the same layouts run over gloo, every tensor and message counted."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "distributed"))

import pool

from llmfactory.config.compose import compose_job
from llmfactory.parallel.plan.arrangement import arrange, pace
from llmfactory.parallel.plan.forecast import dealt_to
from llmfactory.parallel.plan.memory import memory_of
from llmfactory.parallel.plan.messages import messages
from llmfactory.stage.workload import work_of

pytestmark = pytest.mark.dist
SMALL = 4096
"""Bytes of a kind of message below which it is a few numbers (loss, norm, counts), which plans leave out."""
LINE = [
    "model=llama_tiny",
    "model.n_layers=4",
    "model.dim=32",
    "model.vocab_size=264",
    "model.ffn.hidden=48",
    "model.attention.n_heads=4",
    "model.attention.n_kv_heads=2",
    "data/tokenizer=bytes",
    "data.seq_len=32",
    "data.pack.isolate=false",
    "trainer.batch_size=16",
    "trainer.micro_batch_size=2",
    "trainer.max_steps=2",
    "optim.schedule.warmup_steps=1",
    "trainer.eval_every=null",
    "trainer.save_every=null",
    "trainer.keep_best=false",
    "trainer.sample=false",
    "trainer.progress=false",
    "trainer.device=cpu",
    "tracking=none",
    "launch=local",
]
MOE = ["model/ffn=moe", "model.ffn.hidden=32", "model.ffn.n_experts=4", "model.ffn.k=2"]
LAYOUTS = {
    2: {
        "ddp": [],
        "zero1": [],
        "zero2": [],
        "zero3": ["model.ffn.hidden=45"],
        "tp": ["parallel.loss_parallel=true"],
        "tp_sp": ["precision=bf16_mixed"],
        "cp_ring": [],
        "cp_ulysses": [],
        "cp_gather": [],
        "pp_1f1b": ["model/head=lm_tied"],
        "pp_interleaved": [],
        "ep": MOE,
    },
    4: {"hsdp": [], "ep_tp": MOE},
}
CASES = [(world, preset) for world, presets in LAYOUTS.items() for preset in presets]


def line_of(world: int, preset: str, folder: Path) -> list[str]:
    text = ["data=text", f"data.source.files=[{folder / 'text.txt'}]", f"data.cache={folder / 'cache'}"]
    return [*LINE, *text, f"parallel={preset}", f"launch.processes={world}", *LAYOUTS[world][preset]]


def held_and_sent(line: list[str], folder: Path) -> dict[str, Any]:
    """Of this process: bytes of weights, gradients and state at the second step, and bytes sent in it by operation."""
    from llmfactory.data.prepare import prepare
    from llmfactory.parallel.strategy import MeshStrategy
    from llmfactory.parallel.volume import counted
    from llmfactory.run.display import Silent
    from llmfactory.run.fit import fit
    from llmfactory.tracking.none import NoTracker

    job = compose_job(line).job
    found: dict[str, Any] = {}
    step = MeshStrategy.optimizer_step

    def size(tensors: Any) -> int:
        return sum(one.to_local().nbytes if hasattr(one, "to_local") else one.nbytes for one in tensors)

    def listened(self: Any, optimizer: Any, closure: Any, *arguments: Any, **named: Any) -> Any:
        def looked() -> Any:
            loss = closure()
            trained = [one for group in optimizer.param_groups for one in group["params"]]
            found["parameters"] = size(one.detach() for one in trained)
            found["gradients"] = size(one.grad for one in trained if one.grad is not None)
            return loss

        with counted() as volume:
            result = step(self, optimizer, looked, *arguments, **named)
        found["optimizer"] = size(one for state in optimizer.state.values() for one in state.values() if torch.is_tensor(one))
        sent: Counter[str] = Counter()
        for message in volume.messages:
            sent[message.operation] += message.sent
        found["sent"] = dict(sent)
        return result

    MeshStrategy.optimizer_step = listened  # type: ignore[method-assign]
    try:
        fit(job, prepare(job.data, job.model.vocab_size), folder, NoTracker(), Silent(notes=False))
    finally:
        MeshStrategy.optimizer_step = step  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize(("world", "preset"), CASES, ids=[preset for _, preset in CASES])
def test_bytes_held_and_sent_are_those_of_a_run(world: int, preset: str, tmp_path: Path) -> None:
    words = [
        "a",
        "plan",
        "says",
        "what",
        "a",
        "run",
        "will",
        "need",
        "before",
        "it",
        "starts",
        "and",
        "a",
        "test",
        "says",
        "whether",
        "it",
        "was",
        "right",
    ]
    lines = [" ".join(words[(n + k * k) % len(words)] for k in range(5 + n % 13)) for n in range(120)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    line = line_of(world, preset, tmp_path)
    job = compose_job(line).job
    from llmfactory.data.prepare import prepare

    prepare(job.data, job.model.vocab_size)
    counted = pool.run(world, held_and_sent, line, tmp_path / "run")
    work, at = work_of(job, is_cpu=True), arrange(job.parallel.mesh(), world)
    rate, dealt = pace(work.rows, at.data, job.trainer.micro_batch_size), dealt_to(at, work)
    for rank, found in enumerate(counted):
        process = rank // (world // at.pp)
        place = rank // at.group("shards").stride % at.shards
        memory = memory_of(dealt[process], process, at, rate, work, place)
        held = {name: found[name] for name in ("parameters", "gradients", "optimizer")}
        assert held == {name: getattr(memory, name) for name in held}, f"rank {rank}"
        planned: Counter[str] = Counter()
        for one in messages(dealt[process], process, at, rate, work):
            planned[one.operation] += one.total
        for operation in planned.keys() | found["sent"].keys():
            routed = operation == "all_to_all" and at.ep > 1  # tokens choose experts; a plan has them balanced
            sent = found["sent"].get(operation, 0.0)
            assert planned[operation] == pytest.approx(sent, rel=0.1 if routed else 1e-9, abs=SMALL), (rank, operation)
