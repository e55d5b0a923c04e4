"""stage=prepare as a user runs it: the run folder, its report, the documents as files, several processes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import UserError
from llmfactory.run.start import start

TEXTS = [f"Text {i} says: " + " ".join(f"word{i % 40}x{k}" for k in range(12 + i % 40 % 9)) for i in range(60)]
PAGE = "<script>alert(1)</script> is a text, too, and of more than ten words in all, so that it stays."


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    texts = [*TEXTS, "short", PAGE]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "{\n")
    given = ["stage=prepare", "data=jsonl", f"data.source.files=[{tmp_path}/texts.jsonl]", "data.source.bad_share=0.1"]
    return [*given, f"data.cache={tmp_path}/cache", f"output_dir={tmp_path}/runs", "model.vocab_size=300", "data.seq_len=16"]


def run(line: list[str], *more: str) -> dict[str, Any]:
    return start(compose_job([*line, "trainer.progress=false", *more]))


def test_the_account_is_told_and_kept(tmp_path: Path, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = run(line, "name=first", "data/clean=[length,exact]")
    steps = result["preparation"]["steps"]
    assert [steps[name]["kept"] for name in ("read", "length", "exact", "form")] == [62, 61, 41 + 20, 61]
    assert (result["records_read"], result["documents"]) == (63, 61)
    assert result["text_bytes"] / result["tokens"] == pytest.approx(result["bytes_per_token"])
    told = capsys.readouterr().out
    assert "61" in told
    assert "96.8% of 63 records" in told
    page = (tmp_path / "runs" / "first" / "report.html").read_text()
    for words in ("What became of the records", "too few words", "invalid JSON", "texts.jsonl, line 63", "Documents by length"):
        assert words in page, words
    assert "<script>" not in page
    kept = json.loads((tmp_path / "runs" / "first" / "result.json").read_text())
    assert kept["preparation"] == result["preparation"]
    assert Path(result["folder"], "manifest.json").is_file()


def test_training_finds_what_was_prepared(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = run(line, "name=before")
    train = [
        "stage=pretrain",
        "model=llama_tiny",
        "toy=true",
        "model.vocab_size=300",
        "trainer.max_steps=2",
        "trainer.batch_size=2",
    ]
    train += ["trainer.sample=false", "optim.schedule.warmup_steps=1", "name=after", "stage/objective=causal"]
    monkeypatch.setattr("llmfactory.data.tasks.attempt", None)  # nothing is left to do
    trained = run([part for part in line if part != "stage=prepare"], *train)
    assert trained["data"] == prepared["data"]


def test_documents_are_exported(tmp_path: Path, line: list[str]) -> None:
    place = tmp_path / "out"
    run(line, "name=exports", f"stage.export={place}", "data/clean=[length]")
    (file,) = place.iterdir()
    with gzip.open(file, "rt") as lines:
        records = [json.loads(each) for each in lines]
    assert [record["text"] for record in records] == [*TEXTS, PAGE]
    assert records[0] == {"text": TEXTS[0], "name": f"{tmp_path}/texts.jsonl, line 1", "source": "corpus"}
    again = tmp_path / "again"
    run(line, "name=reads", "data/clean=[]", f"stage.export={again}", f"data.source.files=[{place}]", "data.source.bad_share=0")
    assert gzip.decompress(next(again.iterdir()).read_bytes()).count(b"\n") == 61
    with pytest.raises(UserError, match=r"is there already: name another folder, stage\.export="):
        run(line, "name=third", f"stage.export={place}")


@pytest.mark.dist
def test_several_processes_prepare_together(tmp_path: Path, line: list[str]) -> None:
    steps = "data/clean=[length,exact,minhash]"
    alone = run(line, "name=alone", steps)
    both = run(line, "name=both", steps, f"data.cache={tmp_path}/other", "launch=local", "launch.processes=2")
    assert both["preparation"] == alone["preparation"]
    assert both["data"] == alone["data"]
