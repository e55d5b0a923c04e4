"""Conversations from the command line: learned, learned further from a run, asked; preferences prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.tokenizer import FOLDER, load
from llmfactory.run.start import start

SMALL = [
    "model=llama_tiny",
    "model.vocab_size=300",
    "model.dim=32",
    "model.n_layers=2",
    "model.attention.n_heads=2",
    "model.ffn.hidden=64",
    "data.seq_len=128",
    "data.workers=1",
]
SMALL += ["data.form.max_tokens=128", "trainer.batch_size=8", "optim.lr=1e-2", "optim.schedule.warmup_steps=2"]
TEMPLATE = "data/form/template=chatml"
ANSWERS = {"which color": "it is blue", "which animal": "a small cat"}


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = []
    for number in range(40):
        question, answer = list(ANSWERS.items())[number % 2]
        messages = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        rows.append({"conversations": messages} if number % 3 else {"instruction": question, "output": answer, "id": number})
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*line: str) -> Any:
    return start(compose_job(list(line)))


def test_answers_are_learned_and_given_at_inference(lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data=chat", "data.source.files=[my.jsonl]"]
    first = run(*SMALL, *data, TEMPLATE, "data.held_out=0.2", "trainer.max_steps=60", "trainer.preflight=false", "name=a")
    assert first["status"] == "finished"
    kept = load(Path(first["checkpoint"]) / FOLDER)
    end = kept.specials()["<|im_end|>"]
    assert end in kept.usage.stop_ids
    further = run(*SMALL, *data, "init=outputs/a", "trainer.max_steps=5", "name=b", "trainer.preflight=false")
    assert load(Path(further["checkpoint"]) / FOLDER).usage == kept.usage, "with the template that the run was trained with"
    for question, answer in ANSWERS.items():
        found = run("init=outputs/b", "stage=generate", f"stage.prompt='{question}'", "stage.chat=true", "stage.temperature=0")
        assert found["texts"] == [answer]
    capsys.readouterr()


def test_a_row_that_is_no_conversation_is_named(lines: Path) -> None:
    with lines.open("a", encoding="utf-8") as file:
        file.write('{"text": "no conversation"}\n')
    data = ["data=chat", "data.source.files=[my.jsonl]", TEMPLATE]
    with pytest.raises(UserError, match=r"my.jsonl.* 41.*no known format"):
        run(*SMALL, *data, "trainer.max_steps=1", "name=c")
