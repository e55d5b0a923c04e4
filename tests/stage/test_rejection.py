"""stage=rejection with a tiny model that has learned to add, somewhat."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_runs import ROWS, ran, sums, trained

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.data.form.record_rows import Prompt
from llmfactory.data.prepare import prepare
from llmfactory.metric.best_of import best_of, pass_at
from llmfactory.parallel.mesh import World
from llmfactory.run.folder import read_result
from llmfactory.stage import rejection
from llmfactory.stage.grader.grader import Graders
from llmfactory.stage.grader.spec import ExactMatch
from llmfactory.stage.rejection import RejectionJob, batched
from llmfactory.stage.spec import Rejection

SAMPLES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rejection")
    trained(folder, "first", 70)
    return folder


def line(folder: Path, *more: str) -> list[str]:
    every = ["stage=rejection", "data=prompts", f"data.source.files=[{sums(folder)}]", f"init={folder}/outputs/first", *ROWS]
    every += ["trainer.device=cpu", "stage.max_tokens=6", f"stage.samples={SAMPLES}", "stage.batch_size=5"]
    return [*every, *more]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return ran(folder, "best", *line(folder, "stage.pairs=true", "stage/grader=[exact_match,length]"))


def test_the_best_answers_are_kept(folder: Path, result: dict[str, Any]) -> None:
    kept, pairs = rows(Path(result["files"]["best"])), rows(Path(result["files"]["pairs"]))
    assert result["prompts"] == 36
    assert result["answers"] == 36 * SAMPLES
    assert result["kept"] == len(kept) <= 36
    asked = [one["messages"][0]["content"] for one in kept]
    assert len(set(asked)) == len(asked)
    right = {row["question"]: row["answer"] for row in rows(sums(folder))}
    for one in kept:
        question, answer = one["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert answer["content"] == answer["content"].strip() != ""
        assert (answer["content"] == right[question["content"]]) == (one["reward"] > 0.5)
    for pair in pairs:
        assert pair["score_chosen"] > pair["score_rejected"]
        assert pair["chosen"] != pair["rejected"]
    assert 0 < len(pairs) == result["kept_pairs"] < 36
    assert 0 < result["mean_reward"] < result["best_of"][2] < result["best_of"][SAMPLES] == result["best_reward"]
    assert result["pass_at"]["exact_match"][1] == pytest.approx(result["grades"]["exact_match"])
    assert not (folder / "outputs" / "best" / "work").exists()
    saved = read_result(folder / "outputs" / "best")
    assert saved is not None
    page = (folder / "outputs" / "best" / "report.html").read_text(encoding="utf-8")
    assert "best of k answers" in page.lower()
    assert kept[0]["messages"][0]["content"] in page


def test_they_are_read_by_the_stages_that_learn_from_them(folder: Path, result: dict[str, Any]) -> None:
    for data, name, count in (("chat", "best", result["kept"]), ("preference", "pairs", result["kept_pairs"])):
        every = ["stage=prepare", f"data={data}", f"data.source.files=[{result['files'][name]}]", "data/tokenizer=bytes", *ROWS]
        every += ["data.form.max_tokens=24"] if data == "preference" else []
        job = compose_job([*every, f"data.cache={folder}/cache"]).job
        found = prepare(job.data, 300)
        assert found.counts["steps"]["form"]["kept"] == count
        assert not found.counts["steps"]["form"]["dropped"]


def test_learning_from_them_makes_answers_better(folder: Path, result: dict[str, Any]) -> None:
    trained(
        folder, "second", 40, f"init={folder}/outputs/first", f"data.source.files=[{result['files']['best']}]", "optim.lr=1e-3"
    )
    again = ran(folder, "again", *line(folder), f"init={folder}/outputs/second")
    assert again["mean_reward"] > result["grades"]["exact_match"] + 0.02


class Alone(World):
    """One of several processes, without the others."""

    def barrier(self) -> None:
        pass


def one_of(rank: int, size: int) -> Any:
    @contextmanager
    def open_world(*args: Any) -> Any:
        yield Alone(torch.device("cpu"), rank=rank, size=size)

    return open_world


def test_any_number_of_processes_finds_the_same(
    folder: Path, result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = compose_job([*line(folder), "stage.pairs=true", "stage/grader=[exact_match,length]", f"data.cache={folder}/cache"]).job
    assert isinstance(job.stage, Rejection)
    for rank in (2, 1, 0):
        monkeypatch.setattr(rejection, "open_world", one_of(rank, 3))
        found = RejectionJob(job.stage).run(job, tmp_path)
    told = [key for key in found if key not in ("files", "tables")]
    assert {key: found[key] for key in told} == {key: result[key] for key in told}
    for name in ("best", "pairs"):
        assert Path(found["files"][name]).read_bytes() == Path(result["files"][name]).read_bytes()


def test_a_run_that_was_stopped_goes_on(
    folder: Path, result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = Graders.score, []

    def stopped(self: Graders, answers: Any) -> Any:
        calls.append(len(answers))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(self, answers)

    job = compose_job([*line(folder), "stage.pairs=true", "stage/grader=[exact_match,length]", f"data.cache={folder}/cache"]).job
    assert isinstance(job.stage, Rejection)
    monkeypatch.setattr(Graders, "score", stopped)
    with pytest.raises(KeyboardInterrupt):
        RejectionJob(job.stage).run(job, tmp_path)
    found = RejectionJob(job.stage).run(job, tmp_path)
    assert len(calls) == 4 + (8 - 3)  # 36 prompts are 8 batches of 5, and 3 of them were done
    assert Path(found["files"]["best"]).read_bytes() == Path(result["files"]["best"]).read_bytes()


def test_what_was_done_with_another_config_is_not_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(*more: str) -> Any:
        return compose_job([*line(folder), "stage.prompts=4", f"data.cache={folder}/cache", *more]).job

    job = first()
    monkeypatch.setattr(rejection.shutil, "rmtree", lambda path: None)
    RejectionJob(job.stage).run(job, tmp_path)  # type: ignore[arg-type]
    for more in (["seed=1"], ["stage.temperature=0.5"], ["stage.graders.exact_match.ignore_case=true"]):
        before = set((tmp_path / "work").iterdir())
        job = first(*more)
        RejectionJob(job.stage).run(job, tmp_path)  # type: ignore[arg-type]
        assert len(set((tmp_path / "work").iterdir()) - before) == 1, more


@pytest.mark.parametrize(
    ("more", "check"),
    [
        (["stage.prompts=3"], lambda found: found["prompts"] == 3),
        (["stage.temperature=0", "stage.samples=1"], lambda found: found["best_of"] == {1: found["mean_reward"]}),
        (["stage.top_p=0.01"], lambda found: found["best_of"][1] == pytest.approx(found["best_of"][SAMPLES])),
        (["stage.max_tokens=1"], lambda found: found["unfinished"] > 0 and found["kept"] < found["prompts"]),
        (
            ["stage.max_tokens=1", "stage.unfinished=true"],
            lambda found: found["kept"] == found["prompts"] - found["empty"] // SAMPLES,
        ),
        (
            ["stage.threshold=1"],
            lambda found: found["kept"] == round(found["pass_at"]["exact_match"][SAMPLES] * found["prompts"]),
        ),
        (["stage.most=4", "stage.temperature=2"], lambda found: found["kept"] > found["prompts"]),
        (["stage.stop=[0,1,2,3,4,5,6,7,8,9]"], lambda found: found["empty"] > found["answers"] / 2),
        (["stage.share=held_out", "data.held_out=0.4"], lambda found: 3 < found["prompts"] < 30),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options(folder: Path, tmp_path: Path, more: list[str], check: Any) -> None:
    job = compose_job([*line(folder), "stage.prompts=8", f"data.cache={folder}/cache", *more]).job
    if "stage.share=held_out" in more:
        job = compose_job([*line(folder), f"data.cache={folder}/cache", *more]).job
    assert check(RejectionJob(job.stage).run(job, tmp_path))  # type: ignore[arg-type]


def answer(text: str, reward: float, ended: bool = True) -> dict[str, Any]:
    return {"text": text, "reward": reward, "ended": ended}


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ({}, ["b"]),
        ({"most": 3}, ["b", "d", "a"]),
        ({"most": 9, "threshold": 2.0}, ["b", "d"]),
        ({"threshold": 5.0}, []),
        ({"most": 2, "unfinished": True}, ["c", "b"]),
    ],
)
def test_which_are_kept(spec: dict[str, Any], kept: list[str]) -> None:
    answers = [
        answer("a", 1.0),
        answer("b", 3.0),
        answer("c", 4.0, ended=False),
        answer("b", 3.0),
        answer(" ", 9.0),
        answer("d", 2.0),
    ]
    job = RejectionJob(Rejection(graders={"exact_match": ExactMatch()}, **spec))
    assert [one["text"] for one in job.chosen(answers)] == kept


def test_which_are_pairs() -> None:
    job = RejectionJob(Rejection(graders={"exact_match": ExactMatch()}, threshold=1.0))
    asked = [{"role": "user", "content": "?"}]
    (pair,) = job.pair(asked, [answer("a", 1.0), answer(" b ", 3.0), answer("c", 0.0, ended=False), answer("d", 0.5)])
    said = [pair[side][0]["content"] for side in ("chosen", "rejected")]
    assert (said, pair["score_chosen"], pair["score_rejected"]) == (["b", "d"], 3.0, 0.5)
    assert job.pair(asked, [answer("a", 1.0), answer("b", 1.0)]) == []
    assert job.pair(asked, [answer("a", 0.9), answer("b", 0.1)]) == []
    assert job.pair(asked, [answer("", 0.9)]) == []


def test_prompts_of_similar_length_come_together() -> None:
    prompts = [Prompt([0] * size, [], {}) for size in (5, 1, 3, 1)]
    assert batched(prompts, 3) == [[1, 3, 2], [0]]


def test_figures_are_those_of_all_answers() -> None:
    found = [
        {
            "row": 0,
            "answers": [{**answer("a", r), "grades": {"exact_match": g}, "tokens": 2} for r, g in ((0.0, 0.0), (2.0, 1.0))],
        },
        {
            "row": 1,
            "answers": [{**answer("a", r), "grades": {"exact_match": g}, "tokens": 4} for r, g in ((1.0, 1.0), (1.0, None))],
        },
    ]
    prompts = [Prompt([1], [{"role": "user", "content": "?"}], {})] * 2
    told = rejection.told(found, Rejection(graders={"exact_match": ExactMatch()}, samples=2), prompts)
    assert told["best_of"] == {1: 1.0, 2: 1.5}
    assert told["pass_at"] == {"exact_match": {1: 0.5, 2: 1.0}}
    assert told["grades"] == {"exact_match": 2 / 3}
    assert told["answer_tokens"] == 3.0
    assert best_of([0.0, 2.0], 2) == 2.0
    assert pass_at(2, 1, 1) == 0.5


def test_messages_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody judges"):
        Rejection()
    with pytest.raises(ConfigError, match="all 8 answers to a prompt are the same"):
        Rejection(graders={"exact_match": ExactMatch()}, temperature=0.0)
    job = compose_job([*line(folder), "stage.share=held_out", f"data.cache={folder}/cache"]).job
    with pytest.raises(UserError, match="no prompt is left"):
        RejectionJob(job.stage).run(job, tmp_path)  # type: ignore[arg-type]
    job = compose_job([*line(folder), "stage.graders.exact_match.field=result", f"data.cache={folder}/cache"]).job
    with pytest.raises(UserError, match="'result'"):
        RejectionJob(job.stage).run(job, tmp_path)  # type: ignore[arg-type]
