"""Models of this project as judges of texts: trained at tiny size, opened again, against figures worked out by hand."""

from __future__ import annotations

import json
import math
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import UserError
from llmfactory.data.clean.models import Models
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.spec import Classifier, Perplexity
from llmfactory.data.clean.step import Drop, Kept, Step
from llmfactory.run.start import start
from llmfactory.stage import judges as module
from llmfactory.stage.models import TrainedModels

GOOD, BAD = ["list", "file", "text", "value", "name", "path"], ["spam", "buy", "now", "cheap", "win", "free"]


def sentence(draw: random.Random, words: list[str], count: int = 9) -> str:
    return " ".join(draw.choice([*words, "the", "a", "of", "and"]) for _ in range(count)) + "."


EVERY = [
    "trainer.device=cpu",
    "trainer.progress=false",
    "trainer.save_every=null",
    "optim.schedule.warmup_steps=5",
    "data.held_out=0.1",
]


def ran(folder: Path, name: str, *line: str) -> str:
    start(compose_job([*line, *EVERY, f"output_dir={folder}/outputs", f"name={name}"]))
    return f"{folder}/outputs/{name}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An n-gram model and a small transformer of the good sentences, and a classifier of both kinds."""
    folder, draw = tmp_path_factory.mktemp("runs"), random.Random(0)
    (folder / "good.jsonl").write_text(
        "\n".join(json.dumps({"text": " ".join(sentence(draw, GOOD) for _ in range(6))}) for _ in range(80))
    )
    records = [
        {"text": sentence(draw, words), "label": name} for _ in range(150) for name, words in (("bad", BAD), ("good", GOOD))
    ]
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, records)))
    text = ["data=jsonl", f"data.source.files=[{folder}/good.jsonl]", "data.seq_len=64", "model.vocab_size=300"]
    small = [
        "trainer.max_steps=30",
        "trainer.batch_size=8",
        "trainer.eval_every=null",
        "trainer.keep_best=false",
        "optim.lr=3e-3",
    ]
    task = ["stage=finetune", "stage/objective=classify", "data=examples", "data/task=classify", "data.seq_len=32"]
    head = ["model=bert_tiny", "model/head=classifier", f"data.files=[{folder}/labelled.jsonl]"]
    return {
        "counts": ran(folder, "counts", "model=kneser_ney", *text),
        "causal": ran(folder, "causal", "model=llama_tiny", "toy=true", *text, "data/tokenizer=bytes", *small),
        "classes": ran(folder, "classes", *task, *head, *small),
    }


def test_text_is_likelier_than_gibberish(runs: dict[str, str]) -> None:
    draw = random.Random(1)
    gibberish = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz .", k=300))
    text = " ".join(sentence(draw, GOOD) for _ in range(6))
    for name in ("counts", "causal"):
        step = Perplexity(init=runs[name], most=3.5).build(TrainedModels())
        assert isinstance(step, Step)
        outcomes = step.apply_many([Page("a", text), Page("b", gibberish), Page("c", "我们今天去公园玩。"), Page("d", "")])
        assert isinstance(outcomes[0], Kept), name
        assert [outcome.reason for outcome in outcomes[1:] if isinstance(outcome, Drop)] == ["too unlikely"] * 3


def test_it_is_the_sum_over_tokens_and_the_end(runs: dict[str, str]) -> None:
    """Row by row through the logits, without padding and batches."""
    for name in ("counts", "causal"):
        judge = module.likelihood_of(module.find(runs[name]))
        rows = judge.row_length
        assert rows == (64 if name == "causal" else 1024)
        texts = ["", "the list", "a" * (rows - 2), "a" * (rows - 1), "a" * rows, "the file of names. " * 40, "文件 é"]
        found = judge.measure(texts)
        for text, (nats, count) in zip(texts, found, strict=True):
            end = judge.tokenizer.end_id
            stream = [end, *judge.tokenizer.encode(text), end]
            expected = 0.0
            for at in range(0, len(stream) - 1, rows):
                tokens = torch.tensor([stream[at : min(at + rows, len(stream) - 1)]])
                size = tokens.shape[1]
                batch = {"tokens": tokens, "positions": torch.arange(size)[None], "segments": torch.ones_like(tokens)}
                with torch.no_grad():
                    logits = judge.model.head(judge.model(tokens, judge.model.context(batch)))[0].double().log_softmax(-1)
                expected -= logits[torch.arange(size), torch.tensor(stream[at + 1 : at + 1 + size])].sum().item()
            assert nats == pytest.approx(expected, rel=1e-5), (name, text)
            assert count == len(stream) - 1


def test_a_text_s_figures_do_not_depend_on_its_company(runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(2)
    texts = [sentence(draw, GOOD, draw.randrange(1, 60)) for _ in range(40)] + ["", "x"]
    models = TrainedModels()
    for together in (models.likelihood(runs["causal"]), models.likelihood(runs["counts"])):
        alone = [together([text])[0][0] for text in texts]
        assert [nats for nats, _ in together(texts)] == pytest.approx(alone, rel=1e-5)
        assert [nats for nats, _ in reversed(together(texts[::-1]))] == pytest.approx(alone, rel=1e-5)
        monkeypatch.setattr(module, "AT_ONCE", 64)
        assert [nats for nats, _ in together(texts)] == pytest.approx(alone, rel=1e-5)
        assert together([]) == []
    classify = models.classifier(runs["classes"])
    alone = [classify([text])[0]["good"] for text in texts]
    assert [found["good"] for found in classify(texts)] == pytest.approx(alone, abs=1e-5)
    assert classify([]) == []


def test_classes_are_told_apart(runs: dict[str, str]) -> None:
    draw = random.Random(3)
    step = Classifier(init=runs["classes"], label="good").build(TrainedModels())
    assert isinstance(step, Step)
    pages = [Page("a", sentence(draw, words)) for _ in range(40) for words in (GOOD, BAD)]
    kept = [isinstance(outcome, Kept) for outcome in step.apply_many(pages)]
    assert np.mean([found == (number % 2 == 0) for number, found in enumerate(kept)]) > 0.9
    found = TrainedModels().classifier(runs["classes"])(["", "\ud800", "list " * 10_000, "free " * 10_000])
    assert all(sum(classes.values()) == pytest.approx(1.0) and set(classes) == {"bad", "good"} for classes in found)
    assert found[2]["good"] > 0.5 > found[3]["good"]  # by their beginning


def test_halves_of_surrogate_pairs_are_read_as_question_marks(runs: dict[str, str]) -> None:
    measure = TrainedModels().likelihood(runs["counts"])
    assert measure(["a\ud800b"]) == measure(["a?b"])


def test_it_goes_to_other_processes_and_opens_a_model_once(runs: dict[str, str]) -> None:
    models: Models = pickle.loads(pickle.dumps(TrainedModels()))
    assert module.likelihood_of(module.find(runs["counts"])) is module.likelihood_of(
        module.find(f"{runs['counts']}/checkpoints/../")
    )
    assert math.isfinite(models.likelihood(runs["counts"])(["text"])[0][0])
    assert not module.likelihood_of(module.find(runs["causal"])).model.training


def test_fingerprints_go_by_content(runs: dict[str, str], tmp_path: Path) -> None:
    models = TrainedModels()
    prints = {name: models.fingerprint(init) for name, init in runs.items()}
    assert len(set(prints.values())) == len(runs)
    shutil.copytree(runs["causal"], tmp_path / "elsewhere")
    assert models.fingerprint(str(tmp_path / "elsewhere")) == prints["causal"]
    state = next((tmp_path / "elsewhere").glob("checkpoints/*/state.json"))
    content = json.loads(state.read_text())
    next(entry for name, entry in content["files"].items() if name.endswith(".safetensors"))["crc32"] = "00000000"
    state.write_text(json.dumps(content))
    assert models.fingerprint(str(tmp_path / "elsewhere")) != prints["causal"]


def test_what_cannot_judge_is_refused(runs: dict[str, str], tmp_path: Path) -> None:
    models = TrainedModels()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        models.likelihood(str(tmp_path))
    with pytest.raises(UserError, match="trained on classify, which gives texts no likelihood"):
        models.likelihood(runs["classes"])
    for name in ("counts", "causal"):
        with pytest.raises(UserError, match="is no classifier: train one with stage=finetune"):
            models.classifier(runs[name])
    shutil.copytree(runs["counts"], tmp_path / "bare")
    for path in (tmp_path / "bare").rglob("config.yaml"):
        path.unlink()
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        models.likelihood(str(tmp_path / "bare"))
