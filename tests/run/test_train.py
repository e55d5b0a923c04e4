"""The sample at the end of training: its prompt, and that it always fits the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy_job import prepared, toy_job

from llmfactory.model.initialize import initialize
from llmfactory.model.position.spec import Learned
from llmfactory.run.train import first_words, sample


def parts(tmp_path, **changes):
    job = toy_job(tmp_path, **changes)
    model = job.model.build()
    initialize(model, 0)
    return job, model.eval(), prepared(job), job.precision.build("cpu")


def test_the_prompt_is_the_start_of_a_held_out_document_or_what_was_given(tmp_path):
    job, model, data, precision = parts(tmp_path)
    text = data.held_out_text(0)
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
