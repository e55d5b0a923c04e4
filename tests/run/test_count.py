"""A model that counts goes through the same command as any other: checkpoint, figures, evaluation, continuation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.data.prepare import prepare
from llmfactory.model.kneser_ney import KneserNeyModel
from llmfactory.run.count import count
from llmfactory.run.display import make_display
from llmfactory.run.train import train
from llmfactory.tracking.none import NoTracker

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "then",
    "reads",
    "one",
    "more",
    "line",
    "of",
    "text",
]


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    texts = [" ".join(WORDS[(i * j + j // 3) % len(WORDS)] for j in range(120)) for i in range(1, 15)]
    Path("corpus.txt").write_text("\n---\n".join(texts), encoding="utf-8")
    data = ["data=text", "data.source.files=[corpus.txt]", "data.source.split_on=---", "data.held_out=0.2"]
    data += [f"data.cache={tmp_path / 'cache'}", "data.seq_len=32", "data/tokenizer=bytes"]
    return [*data, "model=kneser_ney", "model.order=3", "model.vocab_size=257", "tracking=none", "trainer.progress=false"]


def test_the_whole_command(line: list[str], tmp_path: Path) -> None:
    composed = compose_job([*line, "name=counted", "stage.sample_prompt=the"])
    folder = tmp_path / "outputs" / "counted"
    folder.mkdir(parents=True)
    result = train(composed.job, composed.plain, folder)
    assert result["status"] == "finished"
    assert result["parameters"] > 100
    assert result["bits_per_byte"] < 3
    assert result["sample"]["text"]
    assert "step" not in result
    assert [path.suffix for path in (folder / "checkpoints" / "step_00000001").iterdir() if path.suffix == ".pt"] == []

    from llmfactory.stage.evaluate import EvaluateJob
    from llmfactory.stage.spec import Evaluate

    again = compose_job(["stage=evaluate", f"init={result['checkpoint']}"]).job
    found = EvaluateJob(Evaluate(compressors=False)).run(again, None)
    assert found["held_out_loss"] == pytest.approx(result["held_out_loss"], rel=1e-12)
    assert found["parameters"] == result["parameters"]


def test_what_is_counted_is_not_counted_again(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = compose_job(line).job
    data, display = prepare(job.data, job.model.vocab_size), make_display(False, 0)
    first = count(job, data, tmp_path, NoTracker(), display)
    monkeypatch.setattr(KneserNeyModel, "count", lambda *args: pytest.fail("it was counted again"))
    second = count(job, data, tmp_path, NoTracker(), display)
    assert second.checkpoint == first.checkpoint
    assert second.train_seconds == first.train_seconds
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_neither_rows_at_once_nor_their_length_loses_a_token(line: list[str], tmp_path: Path) -> None:
    """All targets are counted once, however the rows are cut; whole documents in a row give the text's own counts."""
    totals = set()
    for number, cut in enumerate((["data.seq_len=32"], ["data.seq_len=900", "trainer.batch_size=3"])):
        job = compose_job([*line, *cut, "model.order=1"]).job
        data = prepare(job.data, job.model.vocab_size)
        fitted = count(job, data, tmp_path / str(number), NoTracker(), make_display(False, 0))
        assert isinstance(fitted.model, KneserNeyModel)
        counts = torch.zeros(257, dtype=torch.int64)
        counts[fitted.model.orders[0].grams] = fitted.model.orders[0].counts
        assert counts.tolist() == np.bincount(data.train.tokens[1:], minlength=257).tolist()
        totals.add(data.train.targets)
    assert len(totals) == 1


def test_a_tokenizer_that_loses_text_tells_no_bits_per_byte(line: list[str], tmp_path: Path) -> None:
    line[line.index("data/tokenizer=bytes")] = "data/tokenizer=word_level"
    composed = compose_job([*line, "name=words", "trainer.sample=false"])
    (tmp_path / "outputs" / "words").mkdir(parents=True)
    result = train(composed.job, composed.plain, tmp_path / "outputs" / "words")
    assert result["perplexity"] > 1
    assert "bits_per_byte" not in result
