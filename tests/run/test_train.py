"""The sample at the end of training: its prompt, and that it always fits the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_job import prepared, toy_job

from llmfactory.model.initialize import initialize
from llmfactory.model.position.spec import Learned
from llmfactory.parallel.mesh import World
from llmfactory.run.fit import Fitted
from llmfactory.run.sample import first_words, sample
from llmfactory.run.train import figures_of


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
