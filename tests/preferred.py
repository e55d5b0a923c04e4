"""A small job on pairs, rankings or judged answers, whose chosen answers differ from the rejected ones in what they say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from toy_job import Memory, Notes, prepared, toy_job

from llmfactory.config.spec import Job
from llmfactory.data.form.spec import Kto as KtoForm
from llmfactory.data.form.spec import Preference as PairForm
from llmfactory.data.form.spec import Ranking as RankingForm
from llmfactory.data.pack.spec import Document
from llmfactory.data.source.spec import Files
from llmfactory.objective.preference_spec import Dpo, PreferenceSpec
from llmfactory.precision.spec import Fp64
from llmfactory.run.fit import Fitted, fit
from llmfactory.stage.spec import Preference

GOOD, BAD = ("yes", "surely yes", "yes it is", "I say yes"), ("no", "no way", "it is not so", "never")
ASKED = ("is it so", "well", "do you think that it can be", "tell me")


def records(kind: str, count: int = 40) -> list[dict[str, Any]]:
    """Of uneven length, the same every time."""
    found: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"{ASKED[number % 4]} {number}"
        good, bad = GOOD[number * 3 % 4], BAD[number * 7 % 4]
        if kind == "pair":
            found.append({"prompt": prompt, "chosen": good, "rejected": bad})
        elif kind == "ranking":
            found.append({"prompt": prompt, "responses": [good, bad, "?"][: 2 + number % 2]})
        else:
            found.append({"prompt": prompt, "completion": good if number % 3 else bad, "label": bool(number % 3)})
    return found


FORMS = {"pair": PairForm, "ranking": RankingForm, "judged": KtoForm}


def preference_job(folder: Path, objective: PreferenceSpec | None = None, reference: Any = None, **changes: Any) -> Job:
    objective = objective or Dpo(beta=0.5)
    kind = objective.kinds[0]
    path = folder / f"{kind}.jsonl"
    if not path.exists():  # whole or not at all: several processes may come at once
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text("".join(json.dumps(one) + "\n" for one in records(kind)), encoding="utf-8")
        own.replace(path)
    form = RankingForm(most=3) if kind == "ranking" else FORMS[kind]()
    settings = {
        "data__source": Files(files=[str(path)], field=None),
        "data__form": form,
        "data__seq_len": 224,
        "model__max_positions": 224,
        "model__vocab_size": 258,  # which two processes can share
        "trainer__max_steps": 3,
        "trainer__eval_every": 3,
        "trainer__eval_rows": None,
        "trainer__save_every": None,
        "trainer__batch_size": 7,
        "precision": Fp64(),
        "stage": Preference(objective=objective, reference=reference),
        **changes,
    }
    return toy_job(folder, pack=Document(), **settings)


Steps = tuple[dict[int, dict[str, float]], dict[str, torch.Tensor]]


def train(job: Job, folder: Path) -> Steps:
    """Metrics by step, and the final weights, those of a reference aside."""
    tracker = Memory()
    fitted = fit(job, prepared(job), folder, tracker, Notes())
    rows = {step: {k: v for k, v in row.items() if k not in ("lr", "tokens_per_second")} for step, row in tracker.rows.items()}
    return rows, weights_of(fitted)


def weights_of(fitted: Fitted) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in fitted.model.named_parameters() if not name.startswith("reference.")}


def assert_same(ours: Steps, theirs: Steps, tolerance: float = 1e-9) -> None:
    assert list(ours[0]) == list(theirs[0])
    for step, row in theirs[0].items():
        assert ours[0][step].keys() == row.keys()
        for name, value in row.items():
            assert abs(ours[0][step][name] - value) <= tolerance * max(abs(value), 1e-3), f"{name} of step {step}"
    assert ours[1].keys() == theirs[1].keys()
    for name, weight in theirs[1].items():
        assert (ours[1][name] - weight).norm() <= tolerance * weight.norm(), name
