"""Specs to plain data and back, exactly."""

from __future__ import annotations

import dataclasses
import json

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.config.plain import from_plain, to_plain
from llmfactory.core.errors import ConfigError
from llmfactory.optim.schedule.spec import DecaySpec
from llmfactory.run.spec import Device

LINES = [
    [],
    ["model=gpt2", "optim=sgd", "tracking=wandb", "tracking.tags=[a,b]", "tracking.mode=offline"],
    ["precision=fp16_mixed", "parallel=ddp", "launch=local", "optim/schedule=inverse_sqrt", "optim.schedule.warmup_steps=10"],
    ["trainer.device=cpu", "optim.clip_norm=null", "trainer.deterministic=false", "stage.sample_prompt=null"],
    ["data=text", "data.source.files=['a b.txt','c,d.txt']", "data/tokenizer=bytes", "data/pack=document"],
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line) or "default")
def test_round_trip(line: list[str]) -> None:
    composed = compose_job(line)
    through_a_file = json.loads(json.dumps(composed.plain))
    assert from_plain(through_a_file) == composed.job
    assert to_plain(from_plain(through_a_file)) == composed.plain
    assert list(to_plain(from_plain(through_a_file))) == list(composed.plain)


def test_the_shape_of_it() -> None:
    plain = compose_job(["trainer.device=cpu"]).plain
    assert plain["model"]["type"] == "decoder_only"
    assert "type" not in plain["trainer"]  # the field declares this very class
    assert plain["trainer"]["device"] == "cpu"
    assert plain["optim"]["schedule"]["type"] == "cosine"
    assert from_plain(plain).trainer.device is Device.cpu
    assert isinstance(from_plain(plain).optim.schedule, DecaySpec)


def test_a_default_of_a_newer_version_is_filled_in() -> None:
    composed = compose_job([])
    del composed.plain["trainer"]["sample"]
    assert from_plain(composed.plain) == composed.job


def test_what_is_wrong_is_told_at_once() -> None:
    plain = compose_job([]).plain
    plain["trainer"]["batch_size"] = "many"
    plain["trainer"]["no_such_key"] = 1
    plain["model"]["type"] = "no_such_class"
    del plain["data"]["seq_len"]
    with pytest.raises(ConfigError) as raised:
        from_plain(plain)
    paths = {problem.path for problem in raised.value.problems}
    assert paths == {"trainer.batch_size", "trainer.no_such_key", "model.type", "data.seq_len"}


def test_checks_run_again() -> None:
    plain = compose_job([]).plain
    plain["model"]["attention"]["n_heads"] = 5
    with pytest.raises(ConfigError) as raised:
        from_plain(plain)
    assert [problem.path for problem in raised.value.problems] == ["model.attention.n_heads"]
    assert raised.value.problems[0].repair == "model.attention.n_heads=4"


def test_no_field_is_left_out() -> None:
    job = compose_job([]).job
    assert set(to_plain(job)) == {field.name for field in dataclasses.fields(job)}
