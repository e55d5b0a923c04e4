"""What a changed default does to every published run, before anything is launched.

For every model preset and every experiment a file in tests/golden/ holds the resolved config, the parameter count, the
tokens of an optimizer step, the learning rate at five points, and, at toy size on probe tokens that depend on no file,
rounded statistics of the initial weights and the losses of the first three steps. `pytest --update-golden` rewrites them;
a difference is shown by key, with its old and new value and the runs that it touches.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.spec import stem
from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.corruption.vocabulary import Vocabulary
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.model.count import parameters
from llmfactory.model.declarations import declarations
from llmfactory.model.initialize import initialize
from llmfactory.objective.objective import Objective
from llmfactory.objective.spec import Causal, answers_of, natural
from llmfactory.parallel.clip import clip_factor, global_norm, scale_
from llmfactory.stage.rates import rates
from llmfactory.stage.spec import TrainingSpec

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden"
NEEDS = {"text": ["data.source.files=[my.txt]"], "jsonl": ["data.source.files=[my.jsonl]"]}
PRESETS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))


def pretraining(name: str) -> list[str]:
    """The objective that a model is trained on where it is not the config's own; describing it where there is none."""
    spec = compose_job([f"model={name}", "stage=describe"]).job.model
    found = natural(spec.graph, answers_of(spec))
    if found is None:
        return ["stage=describe"]
    return [] if found is Causal else [f"stage/objective={stem(found)}"]


RUNS = {f"model-{name}": [f"model={name}", "data.tokenizer.train_bytes=1000000", *pretraining(name)] for name in PRESETS} | {
    f"experiment-{name}": [f"experiment={name}"] for name in EXPERIMENTS
}
RUNS["experiment-gpt2_shakespeare_style"] += NEEDS["text"]

differences: dict[tuple[str, str, str], list[str]] = defaultdict(list)


def probe(rows: int, length: int, vocab: int, start: int) -> torch.Tensor:
    """Tokens [rows, length] from an integer hash (Knuth's multiplicative one, then a xor shift): the same on every machine."""
    index = torch.arange(start, start + rows * length, dtype=torch.int64)
    mixed = (index * 2654435761 + 12345) % (1 << 32)
    mixed = (mixed ^ (mixed >> 15)) * 2246822519 % (1 << 32)
    return ((mixed >> 8) % vocab).view(rows, length)


def first_losses(job: Job) -> list[float]:
    """Losses of three optimizer steps of the job's own objective, optimizer and schedule on probe tokens."""
    torch.manual_seed(0)
    if not isinstance(job.stage, TrainingSpec) or job.model.graph in ("words", "counts"):
        return []  # nothing to train, or nothing without a corpus
    model = job.model.build()
    job.stage.objective.build().equip(model)
    initialize(model, job.seed)
    model.eval()  # dropout draws differ between machines
    optimizer = job.optim.build(rates(model, job.optim, declarations(model)).groups(model.named_parameters()))
    schedule = job.optim.schedule.build(job.trainer.max_steps)
    objective = job.stage.objective.build()  # type: ignore[attr-defined]
    losses = []
    for step in range(3):
        batch = task(job, objective, step)
        outputs = objective.outputs(model, batch, model.context(batch, isolated=len(batch) > 4 or "source" in batch))
        loss = sum(total / count for total, count in objective(outputs, batch).values())
        optimizer.zero_grad()
        loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        scale_(gradients, clip_factor(global_norm(gradients), job.optim.clip_norm))
        for group in optimizer.param_groups:
            group["lr"] = job.optim.lr * schedule(step)
        optimizer.step()
        losses.append(loss.item())
    return losses


def task(job: Job, objective: Objective, step: int) -> dict[str, torch.Tensor]:
    """A batch of the objective's task, made of probe tokens."""
    vocabulary = Vocabulary(job.model.vocab_size, ByteTokenizer())
    corruption = objective.corruption(vocabulary, min(job.data.seq_len, 32))
    length, ids = (min(job.data.seq_len, 32), job.model.vocab_size) if corruption is None else (corruption.raw_length, 256)
    rows = probe(4, length + 1, ids, step * 1000)
    places = torch.arange(length).expand(4, length).contiguous()
    batch = {
        "tokens": rows[:, :-1].contiguous(),
        "labels": rows[:, 1:].contiguous(),
        "positions": places,
        "segments": torch.ones_like(places),
    }
    return batch if corruption is None else corruption(batch, row_keys(0, np.arange(4) + 4 * step))


def statistics(job: Job) -> dict[str, list[float]]:
    """Mean and standard deviation of each initial weight, rounded so that another CPU's random bits do not show."""
    model = job.model.build()
    initialize(model, job.seed)
    spread = {}
    for name, weight in model.named_parameters():
        std = weight.std(correction=0).item()
        digits = 2 - math.floor(math.log10(std)) if std > 0 else 6
        spread[name] = [round(weight.mean().item(), 3), round(std, min(digits, 4))]
    return spread


def golden(overrides: list[str]) -> dict[str, Any]:
    composed = compose_job(overrides)
    job, toy = composed.job, compose_job([*overrides, "toy=true"]).job
    with torch.device("meta"):
        count = parameters(job.model.build())
    schedule, steps = job.optim.schedule.build(job.trainer.max_steps), job.trainer.max_steps
    return {
        "config": composed.plain,
        "parameters": count,
        "tokens_per_step": job.trainer.batch_size * job.data.seq_len,
        "learning_rate": {
            str(step): float(f"{job.optim.lr * schedule(step):.6g}")
            for step in sorted({0, steps // 4, steps // 2, 3 * steps // 4, steps - 1})
        },
        "initial_weights": statistics(toy),
        "losses": [float(f"{loss:.6g}") for loss in first_losses(toy)],
    }


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; a list is a leaf."""
    if not isinstance(node, dict):
        return {path: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{path}.{name}" if path else name).items()}


def same(key: str, old: Any, new: Any) -> bool:
    """Losses and statistics agree to what another machine may change; everything else exactly."""
    if key == "losses":
        return (
            old is not None and new is not None and all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(old, new, strict=True))
        )
    if key.startswith("initial_weights."):
        return (
            old is not None
            and new is not None
            and all(math.isclose(a, b, rel_tol=0.02, abs_tol=2e-3) for a, b in zip(old, new, strict=True))
        )
    return bool(old == new)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    new = golden(RUNS[name])
    path = GOLDEN / f"{name}.json"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
        return
    assert path.exists(), f"{name} has no golden file: run pytest --update-golden tests/test_golden.py and commit it"
    old, new = flat(json.loads(path.read_text(encoding="utf-8"))), flat(json.loads(json.dumps(new)))
    changed = [key for key in {**old, **new} if not same(key, old.get(key), new.get(key))]
    for key in changed:
        differences[key, repr(old.get(key)), repr(new.get(key))].append(name)
    assert not changed, "\n".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)


def test_no_golden_without_a_run() -> None:
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(RUNS)


def test_a_changed_default_is_seen() -> None:
    """The comparison itself: a value, a missing key and a loss out of band are differences, rounding is not."""
    assert not same("config.optim.lr", 1e-3, 3e-4)
    assert not same("config.optim.clip_norm", None, 1.0)
    assert not same("losses", [5.0, 4.9, 4.8], [5.0, 4.9, 4.81])
    assert same("losses", [5.0, 4.9, 4.8], [5.0001, 4.9, 4.8])
    assert not same("initial_weights.head.weight", [0.0, 0.02], [0.0, 0.03])
    assert not same("initial_weights.head.weight", None, [0.0, 0.03])


@pytest.fixture(scope="module", autouse=True)
def _summary(request: pytest.FixtureRequest):
    """After the last comparison: each changed key once, with all the runs that it touches."""
    yield
    if differences:
        lines = [
            f"  {key}: {old} -> {new}\n    touches {', '.join(runs)}" for (key, old, new), runs in sorted(differences.items())
        ]
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line("\nchanged against tests/golden (accept with pytest --update-golden):\n" + "\n".join(lines))
