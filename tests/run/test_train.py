"""The sample at the end of training: its prompt, and that it always fits the model; going on from a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_published import hf_folder
from tiny_runs import MODEL, ROWS, TRAINER, ran, sums
from toy_job import prepared, toy_job, write_text

from llmfactory.core.errors import UserError
from llmfactory.model.initialize import initialize
from llmfactory.model.position.spec import Learned
from llmfactory.parallel.mesh import World
from llmfactory.run.fit import Fitted
from llmfactory.run.sample import first_words, sample
from llmfactory.run.train import figures_of
from llmfactory.stage.initial import load_tokenizer
from llmfactory.tracking.csv import read_metrics


def parts(tmp_path, **changes):
    job = toy_job(tmp_path, **changes)
    model = job.model.build()
    initialize(model, 0)
    return job, model.eval(), prepared(job), job.precision.build("cpu")


def test_the_prompt_is_the_start_of_a_held_out_document_or_what_was_given(tmp_path):
    job, model, data, precision = parts(tmp_path)
    text = data.held_out_text(data.counts["held_out"]["documents"] // 2)
    assert text.startswith(first_words(data))
    assert len(first_words(data).split()) <= 8
    given = replace(job, stage=replace(job.stage, sample_prompt="a few"))
    assert sample(given, model, data, precision)["prompt"] == "a few"
    assert sample(given, model, data, precision) == sample(given, model, data, precision)
    none_held_out = replace(job, data=replace(job.data, held_out=0.0))
    assert first_words(prepared(none_held_out)) == ""


@pytest.mark.filterwarnings("error")
def test_a_long_prompt_leaves_room_in_a_model_of_few_positions(tmp_path):
    job, model, data, precision = parts(tmp_path, model__position=Learned())
    job = replace(job, stage=replace(job.stage, sample_prompt="word " * 100))
    found = sample(job, model, data, precision)
    assert found["prompt"] == ("word " * 100)[:31]
    assert len(found["text"].encode()) >= 1


@pytest.mark.parametrize("wanted", [True, False])
def test_a_sample_is_written_unless_it_is_not_wanted(tmp_path, wanted):
    job, model, data, _ = parts(tmp_path, trainer__sample=wanted)
    fitted = Fitted(model, 1, None, None, "finished", 1.0, 1.0, 0, None)
    figures = figures_of(job, fitted, data, World(torch.device("cpu")))
    assert ("sample" in figures) == wanted


def test_ids_that_the_tokenizer_lacks_are_never_drawn(tmp_path):
    """A model with more rows than the tokenizer has ids: untrained, it likes them as much as any."""
    job, model, data, precision = parts(tmp_path, model__vocab_size=5000)
    assert data.tokenizer.vocab_size == 257
    assert sample(job, model, data, precision)["text"]


TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
BASES = {"bytes": ["data/tokenizer=bytes"], "trained": ["data/tokenizer=byte_bpe", "data.tokenizer.vocab_size=270"]}


def based(folder: Path, base: str) -> Path:
    """A model that has seen no conversation."""
    if base == "published":
        return hf_folder(folder / "published")
    line = [f"data.source.files=[{write_text(folder)}]", "data.source.split_on=---", "data.seq_len=32", "trainer.max_steps=1"]
    ran(folder, "base", *MODEL, "model.vocab_size=280", *TRAINER, "data=text", "data.held_out=0", *line, *BASES[base])
    return folder / "outputs" / "base"


def tuned(folder: Path, name: str, init: Path, steps: int, *template: str) -> dict[str, Any]:
    line = ["stage=sft", "data=chat", f"data.source.files=[{sums(folder)}]", *ROWS, *TRAINER, f"init={init}", *template]
    return ran(folder, name, *line, "optim/schedule=constant", "trainer.log_every=1", f"trainer.max_steps={steps}")


@pytest.mark.parametrize(
    ("base", "template"), [("bytes", "plain"), ("trained", "chatml"), ("published", "plain")], ids=lambda name: name
)
def test_what_began_with_a_trained_model_goes_on_with_its_own_data(tmp_path: Path, base: str, template: str) -> None:
    """The tokenizer of its checkpoint knows the chat template and its tokens, that of the first model does not."""
    init, chosen = based(tmp_path, base), f"data/form/template={template}"
    whole = tuned(tmp_path, "whole", init, 4, chosen)
    tuned(tmp_path, "cut", init, 2, chosen)
    cut = tuned(tmp_path, "cut", init, 4, chosen)
    assert cut["data"] == whole["data"]
    curves = [read_metrics(tmp_path / "outputs" / name / "metrics.csv") for name in ("whole", "cut")]
    assert [row["loss"] for row in curves[0]] == [row["loss"] for row in curves[1]]
    usages = [load_tokenizer(Path(one["checkpoint"]), 300).usage for one in (whole, cut)]
    assert usages[0] == usages[1]
    assert usages[0].chat_template


@pytest.mark.parametrize("base", BASES)
def test_what_follows_speaks_as_the_run_before_it_was_taught(tmp_path: Path, base: str) -> None:
    (tmp_path / "turns.jinja").write_text(TURNS)
    line = ["data/form/template=jinja_file", f"data.form.template.file={tmp_path}/turns.jinja"]
    tuned(tmp_path, "taught", based(tmp_path, base), 1, *line)
    after = tuned(tmp_path, "after", tmp_path / "outputs" / "taught", 1)
    assert load_tokenizer(Path(after["checkpoint"]), 300).usage.chat_template == TURNS


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["peft=bitfit"], "this model has no biases"),
        (["peft=lora", "peft.targets=[nothing]"], "no linear map is called nothing"),
        (["optim.lr_factors={nothing: 2.0}"], r"optim\.lr_factors: no parameter is called nothing"),
        (["optim.weight_decays={nothing: 0.0}"], r"optim\.weight_decays: no parameter is called nothing"),
    ],
    ids=["bitfit", "lora", "rates", "decays"],
)
def test_names_that_mean_nothing_are_told_before_data_are_prepared(line: list[str], says: str, tmp_path: Path) -> None:
    """Which may take hours."""
    text = write_text(tmp_path)
    given = ["data=text", f"data.source.files=[{text}]", "data.seq_len=32", *MODEL, *TRAINER, "trainer.max_steps=2"]
    with pytest.raises(UserError, match=says):
        ran(tmp_path, "wrong", *given, *line)
    assert not (tmp_path / "cache").exists()
