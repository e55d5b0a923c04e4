"""Weights of a mixture by two small models: one update against plain numbers, and what becomes of noise and of the known."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_job import toy_job

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.batch import IGNORE
from llmfactory.data.mix.spec import Fixed, FromFile
from llmfactory.data.pack.spec import Concat
from llmfactory.data.source.spec import Files
from llmfactory.data.spec import Mixture
from llmfactory.data.tokenizer.spec import Bytes
from llmfactory.optim.schedule.spec import Constant
from llmfactory.stage.reweight import WEIGHTS, Search, updated
from llmfactory.stage.spec import Reweight
from llmfactory.tracking.csv import read_metrics
from llmfactory.tracking.spec import Csv


@pytest.mark.parametrize(("step_size", "smoothing"), [(1.0, 1e-3), (0.3, 0.2), (5.0, 0.0)])
def test_one_update_is_that_of_the_paper(step_size: float, smoothing: float) -> None:
    weights, excess = [0.2, 0.5, 0.3], [0.7, 0.0, 1.9]
    raised = [w * math.exp(step_size * e) for w, e in zip(weights, excess, strict=True)]
    expected = [(1 - smoothing) * one / sum(raised) + smoothing / 3 for one in raised]
    assert updated(np.array(weights), np.array(excess), step_size, smoothing).tolist() == pytest.approx(expected, rel=1e-12)
    huge = updated(np.array(weights), np.array([1000.0, 0.0, 999.0]), 1.0, 0.1)
    assert np.isfinite(huge).all()
    assert huge.sum() == pytest.approx(1)


def job_of(*line: str) -> Job:
    return compose_job(["stage=reweight", "data/source=[pydocs,pycode]", *line]).job


@pytest.mark.parametrize("micro", ["null", "1", "2"])
def test_a_step_weighs_tokens_by_source(micro: str) -> None:
    """By loops over tokens; the last row is of padding alone, and the third source is never seen."""
    job = job_of(f"trainer.micro_batch_size={micro}")
    labels = torch.tensor([[1, 2, IGNORE], [3, IGNORE, IGNORE], [4, 5, 6], [IGNORE] * 3])
    excess = torch.tensor([[0.5, 1.5, 0.0], [2.0, 0.0, 0.0], [0.25, 0.0, 0.25], [0.0] * 3])
    batch, source = {"labels": labels, "excess": excess}, torch.tensor([0, 1, 0, 1])
    search = Search(Reweight(), 3)
    found = search.weigh(batch, source, lambda part: part["excess"], job)
    per_source = [(0.5 + 1.5 + 0.25 + 0.0 + 0.25) / 5, 2.0 / 1]
    assert search.excess_S[:2].tolist() == pytest.approx(per_source)
    assert math.isnan(search.excess_S[2])
    known = np.array([*per_source, sum(per_source) / 2])
    expected = updated(np.full(3, 1 / 3), known, 1.0, 1e-3)
    assert search.weights_S.tolist() == pytest.approx(expected.tolist())
    # Each source's share of the loss is its weight, whatever number of tokens it has.
    for number, tokens in ((0, 5), (1, 1)):
        assert found[source == number].unique().tolist() == pytest.approx([expected[number] / tokens])
    search.weigh(batch | {"excess": excess * 0}, torch.tensor([0, 0, 0, 0]), lambda part: part["excess"], job)
    assert search.excess_S[1] == 2.0  # what it had when it was last seen
    assert search.mean_S.tolist() == pytest.approx(((expected + search.weights_S) / 2).tolist())


VOCABULARY = "abcdefghijklmnopqrstuvwxyz "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise (nothing to learn), the known (learned in a few steps), and text in which each letter follows from the one before it."""
    folder, generator = tmp_path_factory.mktemp("reweight"), random.Random(0)
    table = dict(zip(VOCABULARY, generator.sample(VOCABULARY, len(VOCABULARY)), strict=True))

    def learnable() -> str:
        text = [generator.choice(VOCABULARY)]
        while len(text) < 300:
            text.append(generator.choice(VOCABULARY) if generator.random() < 0.2 else table[text[-1]])
        return "".join(text)

    texts = {
        "noise": ["".join(generator.choice(VOCABULARY) for _ in range(300)) for _ in range(60)],
        "known": ["z" * 300 for _ in range(60)],
        "learnable": [learnable() for _ in range(60)],
    }
    for name, documents in texts.items():
        lines = [json.dumps({"text": f"{number}{text}"}) + "\n" for number, text in enumerate(documents)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def found(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Result of a job whose run folder is `folder/name`."""
    data = Mixture(
        sources={one: Files(files=[str(folder / f"{one}.jsonl")]) for one in ("noise", "known", "learnable")},
        mix=Fixed(),
        tokenizer=Bytes(),
        pack=Concat(),
        seq_len=64,
        held_out=0.0,
        cache=str(folder / "cache"),
        workers=1,
    )
    changes = {"trainer__max_steps": 200, "trainer__batch_size": 12, "trainer__log_every": 50, **changes}
    settings = {"stage": Reweight(), "tracking": Csv(), "optim__schedule": Constant(warmup_steps=5), **changes}
    settings = {"optim__lr": 1e-2, "model__dim": 32, "model__ffn__hidden": 64, **settings}
    job = toy_job(folder, data=data, **settings)
    (folder / name).mkdir()
    return job.stage.build().run(job, folder / name)


def test_noise_and_the_known_give_way_to_what_can_be_learned(folder: Path) -> None:
    result = found(folder, "once")
    weights = {name: result[f"weights/{name}"] for name in ("noise", "known", "learnable")}
    assert sum(weights.values()) == pytest.approx(1)
    # Of seeds 0, 1 and 2 the learnable has 0.63 to 0.68, noise 0.27 to 0.32, the known 0.05; a larger rate makes it a lottery.
    assert weights["learnable"] > 1.6 * max(weights["noise"], weights["known"])
    assert result["excess_loss/learnable"] > max(result["excess_loss/noise"], result["excess_loss/known"])
    written = json.loads((folder / "once" / WEIGHTS).read_text())
    assert written["weights"] == weights
    assert written["baseline"] == pytest.approx(dict.fromkeys(weights, 1 / 3), abs=0.01)
    rows = read_metrics(folder / "once" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [1, 50, 100, 150, 200, 201, 250, 300, 350, 400]
    assert float(rows[0]["loss"]) > float(rows[3]["loss"])
    assert "weights/noise" in rows[-1]
    mix = FromFile(file=str(folder / "once" / WEIGHTS))
    assert mix.knots(dict.fromkeys(weights, 1)) == [(0.0, weights)]


def test_it_is_the_same_again_and_another_with_another_seed(folder: Path) -> None:
    few = {"trainer__max_steps": 6}
    names = ("noise", "known", "learnable")
    ways: list[dict[str, Any]] = [{}, {}, {"seed": 1}, {"trainer__micro_batch_size": 5}, {"stage": Reweight(step_size=9.0)}]
    results = [found(folder, f"run {number}", **few, **changes) for number, changes in enumerate(ways)]
    one, same, other, cut, fast = ([result[f"weights/{name}"] for name in names] for result in results)
    assert one == same
    assert one != other
    assert cut == pytest.approx(one, rel=1e-4)
    assert fast != one
