"""Which keys may differ when a run goes on, key by key, and what is said about the others."""

from __future__ import annotations

import pytest
from toy_job import toy_job

from llmfactory.config.plain import to_plain
from llmfactory.config.spec import Resume
from llmfactory.core.errors import ConfigError
from llmfactory.data.mix.spec import Curriculum
from llmfactory.data.pack.spec import Concat
from llmfactory.data.source.spec import Files
from llmfactory.data.spec import Mixture
from llmfactory.data.tokenizer.spec import Bytes
from llmfactory.launch.spec import Local
from llmfactory.model.attention.spec import Gqa
from llmfactory.optim.schedule.spec import Constant, Linear
from llmfactory.optim.spec import Sgd
from llmfactory.parallel.spec import Mesh
from llmfactory.precision.spec import Fp64, Int8Mixed
from llmfactory.run.resume import ROUNDING, SAFE, compare, flatten, matches
from llmfactory.run.spec import Device
from llmfactory.tracking.spec import Csv


@pytest.fixture
def plain(tmp_path):
    return lambda **changes: to_plain(toy_job(tmp_path, **{"name": "r", **changes}))


def problems(old, new):
    with pytest.raises(ConfigError) as caught:
        compare(old, new)
    return {problem.path: problem for problem in caught.value.problems}


def test_the_same_config_goes_on_without_a_word(plain):
    assert compare(plain(), plain()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__max_steps": 20},
        {"trainer__log_every": 3, "trainer__eval_every": None, "trainer__save_every": 7, "trainer__keep_last": 5},
        {"trainer__log_parts": True},
        {"trainer__keep_best": False, "trainer__progress": False, "trainer__sample": False, "trainer__patience": 3},
        {"tracking": Csv()},
        {"resume": Resume.never, "output_dir": "elsewhere", "name": "other"},
        {"stage__sample_prompt": "x", "data__cache": None, "data__workers": 3},
    ],
)
def test_safe_keys(plain, changes):
    assert compare(plain(), plain(**changes)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__micro_batch_size": 2},
        {"trainer__device": Device.auto},
        {"trainer__threads": 2},
        {"trainer__deterministic": False},
        {"trainer__compile": True},
        {"launch": Local(), "parallel": Mesh(dp_replicate=2)},
    ],
)
def test_keys_that_change_rounding_are_told(plain, changes):
    (line,) = compare(plain(), plain(**changes))
    assert "no longer bit-equal" in line
    assert next(iter(changes)).replace("__", ".") in line


@pytest.mark.parametrize("changes", [{"trainer__micro_batch_size": 2}, {"launch": Local(), "parallel": Mesh(tp=2)}])
@pytest.mark.parametrize("rate", [{"model__dropout": 0.1}, {"model__attention": Gqa(n_heads=4, dropout=0.1)}])
def test_other_masks_are_told(plain, changes, rate):
    assert len(compare(plain(), plain(**changes))) == 1
    _, line = compare(plain(**rate), plain(**rate, **changes))
    assert line.startswith("dropout draws other masks there")
    assert len(compare(plain(**rate), plain(**rate, trainer__threads=2))) == 1


def test_other_roundings_are_told(plain):
    stochastic = {"precision": Int8Mixed(stochastic=True)}
    _, line = compare(plain(**stochastic), plain(**stochastic, trainer__micro_batch_size=2))
    assert line.startswith("precision.stochastic draws other random numbers there")
    assert len(compare(plain(precision=Int8Mixed()), plain(precision=Int8Mixed(), trainer__micro_batch_size=2))) == 1


@pytest.mark.parametrize(
    ("changes", "key", "old", "new"),
    [
        ({"optim__lr": 0.5}, "optim.lr", 0.01, 0.5),
        ({"seed": 3}, "seed", 0, 3),
        ({"trainer__batch_size": 4}, "trainer.batch_size", 8, 4),
        ({"trainer__eval_rows": None}, "trainer.eval_rows", 8, None),
        ({"model__dim": 32}, "model.dim", 16, 32),
        ({"precision": Fp64()}, "precision.type", "fp32", "fp64"),
        ({"optim__schedule": Constant()}, "optim.schedule.type", "cosine", "constant"),
        ({"optim__schedule": Linear(horizon=40, warmup_steps=2)}, "optim.schedule.type", "cosine", "linear"),
        ({"init": "outputs/x"}, "init", None, "outputs/x"),
    ],
)
def test_other_keys_are_refused_with_both_values_and_repairs(plain, changes, key, old, new):
    found = problems(plain(), plain(**changes))
    assert found[key].value == new
    assert repr(old) in found[key].reason
    assert found["name"].repair == "resume=changed"
    assert "name=r-2" in found["name"].reason


def test_a_schedule_that_ends_at_max_steps_must_be_pinned(plain):
    old = plain(optim__schedule__horizon=None, trainer__max_steps=20)
    found = problems(old, plain(optim__schedule__horizon=None, trainer__max_steps=40))
    assert found["trainer.max_steps"].repair == "optim.schedule.horizon=20"
    assert "resume=changed" in found["trainer.max_steps"].reason
    early = problems(plain(optim__schedule__horizon=None, trainer__max_steps=2), plain(optim__schedule__horizon=None))
    assert early["trainer.max_steps"].repair == "resume=changed"  # a horizon within the warm-up is none
    assert compare(old, plain(optim__schedule__horizon=20, trainer__max_steps=40)) == []
    assert compare(plain(optim__schedule__horizon=20, trainer__max_steps=40), old) == []
    assert "optim.schedule.horizon" in problems(old, plain(optim__schedule__horizon=30, trainer__max_steps=40))
    assert compare(plain(optim__schedule=Constant()), plain(optim__schedule=Constant(), trainer__max_steps=99)) == []


def test_several_differences_are_told_at_once(plain):
    found = problems(plain(), plain(optim=Sgd(lr=0.1, schedule=Constant()), seed=1))
    assert {"optim.type", "optim.lr", "seed", "optim.schedule.type"} <= found.keys()


def test_an_unreadable_config_is_named(plain):
    assert "config.yaml" in problems({"model": 3}, plain())["name"].reason


def test_the_tables_name_keys_that_exist(plain):
    keys = dict(flatten(plain(launch=Local())))
    for pattern in {**SAFE, **ROUNDING}:
        assert any(matches(key, {pattern: ""}) for key in keys), f"{pattern} is no key"


def test_every_key_of_the_trainer_was_decided(plain):
    judged = {"trainer.type", "trainer.batch_size", "trainer.batch_ramp.type", "trainer.eval_rows"}
    undecided = [key for key in dict(flatten(plain())) if key.startswith("trainer.") and not matches(key, {**SAFE, **ROUNDING})]
    assert set(undecided) <= judged


def test_a_curriculum_that_ends_at_max_steps_must_be_pinned(plain):
    def mixture(steps, **settings):
        mix = Curriculum(at=[0.0, 1.0], weights={"a": [1.0, 0.0], "b": [0.0, 1.0]}, **settings)
        parts = {"sources": {"a": Files(files=["a.txt"]), "b": Files(files=["b.txt"])}, "mix": mix}
        data = Mixture(tokenizer=Bytes(), seq_len=32, pack=Concat(), **parts)
        return plain(data=data, trainer__max_steps=steps)

    found = problems(mixture(20), mixture(40))
    assert found["trainer.max_steps"].repair == "data.mix.horizon=20"
    assert compare(mixture(20), mixture(40, horizon=20)) == []
    assert compare(mixture(40, horizon=20), mixture(20)) == []
    assert "data.mix.horizon" in problems(mixture(20), mixture(20, horizon=30))
