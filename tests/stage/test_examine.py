"""Models measured record by record, against plain arithmetic on their logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.data.pack.spec import Document
from llmfactory.data.prepare import prepare
from llmfactory.model.initialize import initialize
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.weights import put
from llmfactory.run.start import start
from llmfactory.stage.examine import FIRST, Measured, _asked, best_first, intervals, load, of_records, save

TOY = ["toy=true", "data/tokenizer=bytes", "data.held_out=0.5", "data.workers=1", "trainer.device=cpu", "trainer.sample=false"]
TOY += [
    "trainer.max_steps=2",
    "trainer.batch_size=4",
    "trainer.eval_every=2",
    "data.seq_len=192",
    "data.form.max_tokens=64",
    "model.max_positions=192",
]
ROWS = {
    "chat": lambda n: {"instruction": f"{n}+{n}?", "output": f"It is {n + n}."},
    "preference": lambda n: {"prompt": f"{n}+{n}?", "chosen": f"{n + n}", "rejected": f"not {n}"},
    "ranking": lambda n: {"prompt": f"{n}+1?", "answers": [f"{n + 1}", f"{n}", "no"], "scores": [1.0, 0.0, 0.0]},
}


def given(kind: str, folder: Path) -> list[str]:
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(ROWS[kind](n)) + "\n" for n in range(24)), encoding="utf-8")
    most = ["data.form.most=3"] if kind == "ranking" else []
    return [f"data={kind}", f"data.source.files=[{path}]", *TOY, *most, f"data.cache={folder}/cache", f"output_dir={folder}/runs"]


def opened(kind: str, folder: Path, *more: str) -> tuple[Job, Skeleton, Any]:
    job = compose_job(["stage=prepare", *given(kind, folder), *more]).job
    model = job.model.build()
    initialize(model, 3, put)
    rows = job.data.form.build().rows(Document(), prepare(job.data, job.model.vocab_size).held_out, 192)  # type: ignore[attr-defined]
    return job, model.eval(), rows


def plain(model: Skeleton, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Of one answer in a row of its own."""
    batch = {"tokens": tokens[None], "positions": torch.arange(len(tokens))[None], "segments": torch.ones(1, len(tokens)).long()}
    logits = model.head(model(batch["tokens"], model.context(batch, isolated=False)))[0].double().log_softmax(-1)
    places = (labels >= 0).nonzero()[:, 0]
    return float(sum(logits[place, labels[place]] for place in places)), len(places)


@pytest.mark.parametrize(("kind", "answers"), [("chat", 1), ("preference", 2), ("ranking", 3)])
@torch.no_grad()
def test_figures_are_those_of_plain_arithmetic(kind: str, answers: int, tmp_path: Path) -> None:
    _, model, rows = opened(kind, tmp_path)
    count = len(rows)
    assert count > 6
    wanted = []
    for place in range(count):
        row = {name: field[0] for name, field in rows.read(np.array([place])).items()}
        wanted.append(
            [plain(model, *(row[name][row["segments"] == k + 1] for name in ("tokens", "labels"))) for k in range(answers)]
        )
    for size in (3, 64):
        found = of_records(model, rows, count, answers, size)
        if answers == 1:
            assert found.values["log_likelihood"] == pytest.approx([one[0][0] for one in wanted], rel=1e-5)
            assert found.over["log_likelihood"].tolist() == [one[0][1] for one in wanted]
        else:
            means = [[total / number for total, number in one] for one in wanted]
            assert found.values["choice"].tolist() == [float(one[0] > max(one[1:])) for one in means]
    assert len(of_records(model, rows, 2, answers, 8).values[next(iter(found.values))]) == 2


@torch.no_grad()
def test_a_reward_model_is_asked_for_the_last_token_of_each_answer(tmp_path: Path) -> None:
    _, model, rows = opened("ranking", tmp_path, "model/head=reward")
    found = of_records(model, rows, len(rows), 3, 5).values["ranked"]
    for place in range(len(rows)):
        row = {name: field[0] for name, field in rows.read(np.array([place])).items()}
        scores = []
        for k in (1, 2, 3):
            tokens = row["tokens"][row["segments"] == k][None]
            batch = {"tokens": tokens, "positions": torch.arange(tokens.shape[1])[None], "segments": torch.ones_like(tokens)}
            scores.append(model.head(model(tokens, model.context(batch, isolated=False))[:, -1])[0, 0].item())
        assert found[place] == float(scores[0] > max(scores[1:]))


def test_ties_are_shared_and_missing_answers_do_not_compete() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 5.0, 9.0], [2.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    there = torch.tensor([[True, True, True], [True, False, False], [True, True, True], [True, True, True]])
    assert best_first(scores, there).tolist() == pytest.approx([0.5, 1.0, 0.5, 1 / 3])


def test_a_prompt_ends_where_the_answer_begins(tmp_path: Path) -> None:
    _, _, rows = opened("ranking", tmp_path)
    batch = rows.read(np.array([1]))
    asked = _asked(rows, 1)
    first = batch["segments"][0] == 1
    learned = batch["labels"][0][first] >= 0
    begin = int(learned.nonzero()[0])
    assert asked.tokens == batch["tokens"][0][: begin + 1].tolist()
    assert asked.record["answer"] == batch["labels"][0][first][learned].tolist()


def test_what_each_record_gave_is_kept(tmp_path: Path) -> None:
    first, other = Measured(), Measured()
    first.add("log_likelihood", [-2.0, -6.0], [1.0, 3.0])
    other.add("log_likelihood", [-1.0, -3.0], [1.0, 3.0])
    other.add("kl", [0.5, 1.5])
    save(tmp_path / "items.npz", {FIRST: first, "other": other})
    found = load(tmp_path / "items.npz")
    told = intervals([found])
    assert told == intervals([{FIRST: first, "other": other}])
    assert told["log_likelihood"][FIRST]["mean"] == -2.0
    assert told["log_likelihood"]["other - init"]["mean"] == 1.0
    assert told["kl"].keys() == {"other"}
    assert intervals([found, found])["kl"]["other"]["seeds"] == 2
    (tmp_path / "items.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "items.npz")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model that was taught, one that was taught further, and one that judges."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"folder": str(folder)}
    for name, more in {
        "base": ["stage=sft", *given("chat", folder)],
        "more": ["stage=sft", *given("chat", folder), "seed=1", "optim.lr=1e-2"],
        "judge": ["stage=reward", "model/head=reward", *given("preference", folder)],
    }.items():
        start(compose_job([*more, f"name={name}"]))
        made[name] = f"{folder}/runs/{name}"
    return made


def examined(runs: dict[str, str], name: str, *more: str) -> dict[str, Any]:
    of_run = ("toy=", "data/tokenizer=", "model.")
    rest = [one for one in given("chat", Path(runs["folder"])) if not one.startswith(of_run)]
    return start(compose_job(["stage=examine", f"init={runs['base']}", *rest, f"name={name}", *more]))


def test_a_judge_scores_what_models_write(runs: dict[str, str]) -> None:
    judged = [f"stage.judge={runs['judge']}", "stage.max_tokens=5", "stage.samples=2"]
    found = examined(runs, "judged", f"stage.against.more={runs['more']}", f"stage.against.same={runs['base']}", *judged)
    measures = found["measures"]
    assert measures.keys() == {"log_likelihood", "reward", "kl", "tokens"}
    assert measures["kl"]["init"]["mean"] == measures["kl"]["same"]["mean"] == 0.0
    assert measures["kl"]["more"]["mean"] > 0.0
    assert measures["reward"]["same - init"]["mean"] == measures["log_likelihood"]["same - init"]["mean"] == 0.0
    assert measures["reward"]["more - init"]["mean"] != 0.0
    assert 0 < measures["tokens"]["init"]["mean"] <= 5
    assert len(found["samples"]) == 2
    first = found["samples"][0]
    assert first.keys() == {
        "prompt",
        "reference",
        *(f"{one}{what}" for one in ("init", "more", "same") for what in ("", ": reward")),
    }
    assert first["reference"].strip().startswith("It is")
    assert first["same"] == first["init"]


def test_options_of_what_is_written(runs: dict[str, str]) -> None:
    judged = [f"stage.judge={runs['judge']}", "stage.max_tokens=5", "stage.most=4"]
    few = examined(runs, "few", *judged)
    assert few["records"] == few["measures"]["reward"]["init"]["items"] == 4
    longer = examined(runs, "longer", *judged, "stage.max_tokens=9")
    assert longer["measures"]["tokens"]["init"]["mean"] > few["measures"]["tokens"]["init"]["mean"]
    cold = examined(runs, "cold", *judged, "stage.temperature=0")
    assert cold["measures"]["reward"]["init"]["mean"] != few["measures"]["reward"]["init"]["mean"]


def test_what_cannot_be_compared_is_refused(runs: dict[str, str]) -> None:
    with pytest.raises(UserError, match="gives no reward"):
        examined(runs, "wrong", f"stage.judge={runs['more']}")
    with pytest.raises(UserError, match="so it writes nothing"):
        examined(runs, "mute", f"stage.against.judge={runs['judge']}", "stage.samples=1")
