"""Runs that train a part of their model: what their checkpoints hold, what they stand on, and whole models made of both."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from toy_job import Notes, filled, toy_job, train, weights

from llmfactory.checkpoint import io
from llmfactory.config.saved import saved_spec
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.model.head.spec import Lm
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.base_spec import AdapterSpec, PeftSpec
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.merge import merge
from llmfactory.peft.spec import Bitfit, Dora, Ia3, Lora
from llmfactory.run.fit import build_stage
from llmfactory.stage.base import BASE, contents, trained_part
from llmfactory.stage.export import tensors_of
from llmfactory.stage.initial import fill

LORA = Lora(rank=2, alpha=8.0)


def job(folder: Path, init: Path | None = None, peft: AdapterSpec = LORA, **changes: object) -> Job:
    start = None if init is None else str(init)
    settings = {"trainer__max_steps": 4, "trainer__save_every": 2, "trainer__eval_every": None, "trainer__keep_best": False}
    return toy_job(folder, **{"init": start, "peft": peft, "model__dropout": 0.1, **settings, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the whole model."""
    folder = tmp_path_factory.mktemp("base")
    train(dataclasses.replace(toy_job(folder), name="base"), folder / "run")
    return folder / "run"


def whole(checkpoint: Path, like: Job) -> Skeleton:
    model = like.model.build()
    fill(model, checkpoint)
    return model.eval()


def logits(model: Skeleton) -> torch.Tensor:
    tokens = torch.arange(24).view(2, 12)
    batch = {"tokens": tokens, "positions": torch.arange(12).expand(2, 12), "segments": torch.ones_like(tokens)}
    with torch.no_grad():
        return model.head(model(tokens, model.context(batch)))


METHODS = {
    "lora": LORA,
    "pissa": Lora(rank=2, start=Start.pissa),
    "dora": Dora(rank=2),
    "ia3": Ia3(),
    "beside": Lora(rank=2, train=["norm"]),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_model_is_base_and_adapters(method: str, base: Path, tmp_path: Path) -> None:
    work = job(tmp_path, base, METHODS[method])
    fitted, _ = train(work, tmp_path / "run")
    assert fitted.checkpoint is not None
    saved = io.read_state(fitted.checkpoint)["tensors"]
    assert {name for name in saved if not name.startswith("optimizer.")} == {
        name for name, one in fitted.model.named_parameters() if one.requires_grad
    }
    found = whole(tmp_path / "run" / "checkpoints" / "step_00000004", work)
    torch.testing.assert_close(logits(found), logits(fitted.model), rtol=1e-4, atol=1e-5)
    before = whole(io.find(base), work)
    assert (logits(found) - logits(before)).abs().max() > 1e-3
    exported = tensors_of(work, fitted.checkpoint)
    assert all(torch.equal(exported[name], tensor) for name, tensor in found.named_parameters())


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_a_run_that_goes_on_is_the_unbroken_one(method: str, base: Path, tmp_path: Path) -> None:
    unbroken, first = train(job(tmp_path, base, METHODS[method]), tmp_path / "unbroken")
    train(job(tmp_path, base, METHODS[method], trainer__max_steps=2), tmp_path / "broken")
    resumed, second = train(job(tmp_path, base, METHODS[method]), tmp_path / "broken")
    assert second.curve() == {step: row for step, row in first.curve().items() if step > 2}
    for name, tensor in weights(unbroken).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_adapters_on_a_model_with_adapters(base: Path, tmp_path: Path) -> None:
    first, _ = train(job(tmp_path, base), tmp_path / "first")
    again = job(tmp_path, tmp_path / "first", Dora(rank=3))
    second, _ = train(again, tmp_path / "second")
    merge(first.model)
    torch.testing.assert_close(second.model.blocks[0].ffn.up.weight, first.model.blocks[0].ffn.up.weight, rtol=1e-5, atol=1e-6)
    found = whole(io.find(tmp_path / "second"), again)
    torch.testing.assert_close(logits(found), logits(second.model), rtol=1e-4, atol=1e-5)


def test_a_base_of_random_numbers(tmp_path: Path) -> None:
    work = job(tmp_path)
    fitted, _ = train(work, tmp_path / "run")
    assert io.read_state(fitted.checkpoint)[BASE] == {"init": None, "seed": work.seed}
    torch.testing.assert_close(logits(whole(fitted.checkpoint, work)), logits(fitted.model), rtol=1e-4, atol=1e-5)


def test_a_base_that_is_gone_or_changed(base: Path, tmp_path: Path) -> None:
    place, work = tmp_path / "base", job(tmp_path, tmp_path / "base")
    shutil.copytree(base, place)
    fitted, _ = train(dataclasses.replace(work, trainer=dataclasses.replace(work.trainer, max_steps=2)), tmp_path / "run")
    assert fitted.checkpoint is not None
    place.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"needs: there is no model at .*base"):
        whole(fitted.checkpoint, work)
    with pytest.raises(UserError, match="there is no model at"):
        train(work, tmp_path / "run")
    moved = dataclasses.replace(work, init=str(tmp_path / "elsewhere"))
    resumed, _ = train(moved, tmp_path / "run")
    assert resumed.step == 4
    train(toy_job(tmp_path, seed=5), place)
    with pytest.raises(UserError, match="base holds other weights now"):
        whole(fitted.checkpoint, work)


def test_a_head_that_starts_anew_is_trained(base: Path, tmp_path: Path) -> None:
    notes = Notes()
    work = job(tmp_path, base, model__head=Lm(tied=False))
    stage = filled(build_stage(work, isolated=True, note=notes.note))
    assert "starts anew" in notes.notes[0]
    assert stage.model.get_parameter("head.weight").requires_grad
    assert "head.weight" not in stage.model.borrowed
    kept = build_stage(job(tmp_path, base, Lora(train=[]), model__head=Lm(tied=False)), isolated=True)
    assert not kept.model.get_parameter("head.weight").requires_grad
    fitted, _ = train(work, tmp_path / "run")
    found = whole(fitted.checkpoint, work)
    torch.testing.assert_close(logits(found), logits(fitted.model), rtol=1e-4, atol=1e-5)


def test_another_model_says_what_does_not_fit(base: Path, tmp_path: Path) -> None:
    fitted, _ = train(job(tmp_path, base), tmp_path / "run")
    other = dataclasses.replace(job(tmp_path).model, n_layers=3)
    with pytest.raises(UserError, match=r"missing in the checkpoint: blocks\.2"):
        fill(other.build(), fitted.checkpoint)


def test_what_a_whole_run_says(base: Path) -> None:
    checkpoint = io.find(base)
    assert trained_part(checkpoint) is None
    assert contents(checkpoint) == contents(checkpoint)
    assert saved_spec(checkpoint.parent, PeftSpec, "peft") is None  # no checkpoint


def test_biases_alone_stand_in_a_checkpoint(tmp_path: Path) -> None:
    work = job(tmp_path, peft=Bitfit(), model__attention=dataclasses.replace(toy_job(tmp_path).model.attention, bias=True))
    fitted, _ = train(work, tmp_path / "run")
    names = [name for name in io.read_state(fitted.checkpoint)["tensors"] if not name.startswith("optimizer.")]
    assert names
    assert all(name.endswith(".bias") for name in names)
    torch.testing.assert_close(logits(whole(fitted.checkpoint, work)), logits(fitted.model), rtol=1e-5, atol=1e-6)
