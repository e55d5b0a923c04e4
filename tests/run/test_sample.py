"""The sample at the end: first words of a text, or a held-out question as training put it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.data.prepared import Prepared
from llmfactory.model.initialize import initialize
from llmfactory.model.skeleton import Skeleton
from llmfactory.run.sample import prompt_ids, question, sample
from llmfactory.run.train import learned_share
from llmfactory.stage.rows import read_data, task_rows

SMALL = [
    *("model=llama_tiny", "model.vocab_size=400", "model.dim=16", "model.n_layers=1", "model/attention=gqa"),
    *("model.attention.n_heads=2", "model.ffn.hidden=24", "model.max_positions=128", "data/tokenizer=bytes", "data.workers=1"),
    *("data.seq_len=128", "data.form.max_tokens=128", "data.held_out=0.3", "trainer.device=cpu"),
]


def job_of(folder: Path, *line: str) -> Job:
    rows = [
        {"messages": [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]}
        for number in range(40)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = [f"data.source.files=[{folder}/chat.jsonl]", f"data.cache={folder}/cache"]
    return compose_job(["stage=sft", "data=chat", *source, *SMALL, *line]).job


def prepared(job: Job) -> Prepared:
    data = read_data(job, None, ())
    assert isinstance(data, Prepared)
    return data


def model_of(job: Job) -> Skeleton:
    model = job.model.build().eval()
    initialize(model, 0)
    return model


def test_a_held_out_question_is_put_as_in_training(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    data = prepared(job)
    ids = prompt_ids(job, data, 64)
    assert ids is not None
    (source,) = data.sources.values()
    whole = [source.held_out.document(number) for number in range(source.held_out.documents)]
    assert any(one[: len(ids)] == ids for one in whole), "its tokens are those of a row's beginning"
    text = data.tokenizer.decode(ids[1:])
    assert text.startswith("User: question ")
    assert text.endswith("\n\nAssistant:")
    assert question(data, 8) is None, "none is that short"
    with torch.no_grad():
        found = sample(job, model_of(job), data, job.precision.build("cpu"))
    assert found is not None
    assert found["prompt"].endswith("Assistant:")
    assert found["text"]


def test_a_question_of_one_s_own(tmp_path: Path) -> None:
    job = job_of(tmp_path, "stage.sample_prompt='Who are you?'", "data.form.system=Short.")
    data = prepared(job)
    ids = prompt_ids(job, data, 64)
    assert ids is not None
    assert data.tokenizer.decode(ids[1:]) == "Short.\n\nUser: Who are you?\n\nAssistant:"
    assert prompt_ids(job, data, 8) is None


def test_how_much_is_learned(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    data = prepared(job)
    rows = task_rows(job, job.stage.objective.build(), data, "train")  # type: ignore[attr-defined]
    (source,) = data.sources.values()
    assert learned_share(rows) == pytest.approx(source.train.targets / source.train.inputs, rel=1e-9)
    assert 0.1 < learned_share(rows) < 0.6
