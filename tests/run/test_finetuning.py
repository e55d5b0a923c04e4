"""Tasks on labelled examples from the command line: each is learned, measured in its own figures, and measured again the same."""

from __future__ import annotations

import json
import random

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.run.start import start

WORDS = ["the", "a", "film", "book", "was", "and", "very", "it", "plot", "story", "with", "some", "of", "in"]


def filler(numbers, count):
    return [numbers.choice(WORDS) for _ in range(count)]


def classified(numbers):
    """Good or bad, by one word of two kinds."""
    good = numbers.random() < 0.5
    words = filler(numbers, 8)
    words.insert(numbers.randrange(8), numbers.choice(["lovely", "great"] if good else ["awful", "sad"]))
    return {"text": " ".join(words), "label": "good" if good else "bad"}


def tagged(numbers):
    """A name of two words follows `mr`."""
    words, place = filler(numbers, 8), numbers.randrange(6)
    words[place : place + 3] = ["mr", *filler(numbers, 2)]
    tags = ["O"] * 8
    tags[place + 1 : place + 3] = ["B-PER", "I-PER"]
    return {"words": words, "tags": tags}


def answered(numbers):
    """The answer is the word in brackets."""
    words = filler(numbers, 8)
    place = numbers.randrange(8)
    answer, words[place] = words[place], f"( {words[place]} )"
    start = len(" ".join([*words[:place], "("])) + 1
    return {"question": "which one", "context": " ".join(words), "answers": {"text": [answer], "answer_start": [start]}}


def rewritten(numbers):
    """One of two sentences, by a word."""
    words, color = filler(numbers, 6), numbers.choice(["red", "blue"])
    words.insert(numbers.randrange(6), color)
    return {"source": " ".join(words), "target": "it is blue as the sea" if color == "blue" else "we like this red thing"}


TASKS = {
    "classify": (classified, ["model=bert_tiny", "model/head=classifier"], "accuracy", 0.9),
    "tag": (tagged, ["model=bert_tiny", "model/head=token_classifier", "model.head.n_classes=3"], "f1", 0.8),
    "answer": (answered, ["model=bert_tiny", "model/head=span_qa"], "exact_match", 0.8),
    "rewrite": (rewritten, ["model=t5_small", "toy=true", "data.task.figures=rouge", "trainer.max_steps=150"], "rouge1", 0.9),
}
OBJECTIVES = {"answer": "span", "rewrite": "seq2seq"}


@pytest.fixture
def write(tmp_path):
    def make(task, count=240, name="train"):
        numbers = random.Random(1)
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(TASKS[task][0](numbers)) for _ in range(count)) + "\n")
        return path

    return make


def line(task, path, tmp_path, steps=60):
    return [
        *("stage=finetune", f"stage/objective={OBJECTIVES.get(task, task)}", "data=examples", f"data/task={task}"),
        *(f"data.files=[{path}]", "data.held_out=0.15", "data.seq_len=32", f"output_dir={tmp_path}/outputs", f"name={task}"),
        *(f"trainer.max_steps={steps}", "trainer.batch_size=16", "optim.lr=2e-3", "optim.schedule.warmup_steps=5"),
        *("trainer.eval_every=30", "trainer.save_every=null", "trainer.device=cpu", "trainer.progress=false"),
        *TASKS[task][1],
    ]


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_learned_and_measured(task, write, tmp_path):
    result = start(compose_job(line(task, write(task), tmp_path)))
    _, _, figure, least = TASKS[task]
    assert result[figure] >= least
    again = start(compose_job(["stage=evaluate", f"init={tmp_path}/outputs/{task}", "trainer.device=cpu"]))
    shared = {key for key in again if key in result and isinstance(again[key], float)} - {"seconds"}
    assert figure in shared
    assert {key: again[key] for key in shared} == pytest.approx({key: result[key] for key in shared}, rel=1e-5)
    assert "perplexity" not in result
    assert "sample" not in result


def test_a_pretrained_model_gets_a_new_head(write, tmp_path, capsys):
    """Everything else is the pretrained model's; a head of the same kind and size would go on."""
    base = line("classify", write("classify"), tmp_path, steps=1)
    first = [one for one in base if not one.startswith("name=")]
    start(compose_job([*first, "name=first"]))
    capsys.readouterr()
    start(compose_job([*first, "name=second", f"init={tmp_path}/outputs/first", "optim.lr=1e-12"]))
    assert "head starts anew" not in capsys.readouterr().out
    start(compose_job([*first, "name=third", f"init={tmp_path}/outputs/first", "model.head.n_classes=5", "optim.lr=1e-12"]))
    assert "the head starts anew" in capsys.readouterr().out
    from safetensors.torch import load_file

    def weights(name):
        (path,) = (tmp_path / "outputs" / name / "checkpoints").glob("step_*")
        found = {}
        for shard in path.glob("*.safetensors"):
            found |= {key: value for key, value in load_file(shard).items() if not key.startswith("optimizer.")}
        return found

    one, three = weights("first"), weights("third")
    assert three["head.weight"].shape[0] == 5
    body = [name for name in one if not name.startswith("head.")]
    assert len(body) > 10
    for name in body:
        assert (one[name] - three[name]).abs().max() < 1e-6


def test_classes_of_the_run_are_kept(write, tmp_path):
    """An evaluation on examples of one class only numbers it as training did."""
    start(compose_job(line("classify", write("classify"), tmp_path)))
    only = tmp_path / "only.jsonl"
    only.write_text("\n".join(json.dumps({"text": "a great film", "label": "good"}) for _ in range(4)) + "\n")
    command = [
        "stage=evaluate",
        f"init={tmp_path}/outputs/classify",
        "data.held_out_files=[" + str(only) + "]",
        "trainer.device=cpu",
    ]
    assert start(compose_job(command))["accuracy"] == 1.0


def test_what_does_not_fit_is_told(write, tmp_path):
    path = write("tag")
    with pytest.raises(UserError, match=r"3 classes \(B-PER, I-PER, O\), the head only 2: model\.head\.n_classes=3"):
        start(compose_job([*line("tag", path, tmp_path), "model.head.n_classes=2"]))
    with pytest.raises(ConfigError, match="rule objective_fits_the_data"):
        compose_job(["data=examples", f"data.files=[{path}]"])
    start(compose_job(line("classify", write("classify", name="other"), tmp_path, steps=1)))
    with pytest.raises(
        UserError, match=r"was trained on classify, which is measured on examples \(data=examples data/task=classify\)"
    ):
        start(compose_job(["stage=evaluate", f"init={tmp_path}/outputs/classify", "data=pydocs", "trainer.device=cpu"]))
