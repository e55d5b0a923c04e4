"""A reward model as a grader, beside its training rows and its own forward pass."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tiny_runs import MODEL, ROWS, TRAINER, ran

from llmfactory.core.errors import UserError
from llmfactory.data.form.preference import PreferenceForm
from llmfactory.data.form.spec import Preference
from llmfactory.data.form.template.spec import Own
from llmfactory.stage.grader.grader import Answer, NoGrade
from llmfactory.stage.grader.model import ModelGrader
from llmfactory.stage.grader.spec import Model

Said = Callable[..., Answer]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    rows = [{"prompt": f"{a}?", "chosen": str(a), "rejected": str(a + 1)} for a in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=preference", f"data.source.files=[{folder}/pairs.jsonl]", *ROWS, "data.form.max_tokens=24"]
    ran(
        folder, "judge", "stage=reward", "model/head=reward", *data, *MODEL, *TRAINER, "trainer.max_steps=8", "model.init_std=0.2"
    )
    return folder / "outputs" / "judge"


def test_it_reads_what_it_was_trained_on(judge: Path, said: Said) -> None:
    grader = ModelGrader(Model(init=str(judge)), CPU)
    form = PreferenceForm(Preference(template=Own()))
    asked, answers = [{"role": "user", "content": "2?"}], [{"role": "assistant", "content": text} for text in ("2", "3")]
    record = {"prompt": asked, "chosen": answers[:1], "rejected": answers[1:]}
    (sides,) = form.encode(grader.tokenizer, [json.dumps({"records": [record]})])
    assert sides is not None
    expected = [list(side.ids) for side in sides]
    assert grader.rows([said("2", prompt="2?"), said("3", prompt="2?")]) == expected


def test_its_grade_is_the_number_of_the_last_token(judge: Path, said: Said) -> None:
    grader = ModelGrader(Model(init=str(judge)), CPU)
    answers = [said(text, prompt="2?") for text in ("2", "three", "", "2", "x" * 20)]
    found = grader.grade(answers)
    for row, grade in zip(grader.rows(answers), found, strict=True):
        tokens = torch.tensor([row])
        batch = {"tokens": tokens, "positions": torch.arange(len(row or []))[None], "segments": torch.ones_like(tokens)}
        with torch.no_grad():
            hidden = grader.model(tokens, grader.model.context(batch))
        assert grade == pytest.approx(grader.model.head(hidden[:, -1:]).item(), abs=1e-5)
    assert found[0] == pytest.approx(found[3], abs=1e-6)
    assert len({round(grade, 4) for grade in found if isinstance(grade, float)}) == 4
    few = ModelGrader(Model(init=str(judge), batch_tokens=32), CPU).grade(answers)
    assert few == pytest.approx(found, abs=1e-5)


def test_a_conversation_before_the_answer_counts(judge: Path, said: Said) -> None:
    grader = ModelGrader(Model(init=str(judge)), CPU)
    one = said("2", prompt="2?")
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}, {"role": "user", "content": "2?"}]
    longer = Answer(one.prompt, one.text_prompt, one.tokens, one.text, True, {}, turns)
    assert grader.tokenizer.decode((grader.rows([longer])[0] or [])[1:]).count("User:") == 2
    assert grader.grade([longer]) != grader.grade([one])


def test_what_it_cannot_read_has_no_grade(judge: Path, said: Said) -> None:
    grader = ModelGrader(Model(init=str(judge)), CPU)
    found = grader.grade([said("2", prompt="x" * 100), said("2", prompt="2?")])
    assert found[0] == NoGrade("longer than the reward model can read")
    assert isinstance(found[1], float)


def test_other_models_are_no_judges(judge: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        ModelGrader(Model(init=str(tmp_path)), CPU)
    text = ["data=text", f"data.source.files=[{judge.parents[1]}/pairs.jsonl]", "data.held_out=0", "data.seq_len=32"]
    ran(
        tmp_path,
        "writer",
        "stage=pretrain",
        *text,
        *MODEL,
        *TRAINER,
        "trainer.max_steps=1",
        "trainer.batch_size=1",
        "optim/schedule=constant",
        "optim.schedule.warmup_steps=0",
    )
    with pytest.raises(UserError, match="is no reward model: train one with stage=reward"):
        ModelGrader(Model(init=f"{tmp_path}/outputs/writer"), CPU)
