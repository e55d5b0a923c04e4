"""stage=merge with tiny runs, end to end."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_runs import MODEL, ROWS, ran, trained

from llmfactory.checkpoint import io
from llmfactory.checkpoint.tensors import Contents
from llmfactory.config.compose import compose_job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.parallel.mesh import World
from llmfactory.stage.base import tensors_behind
from llmfactory.stage.initial import load_tokenizer
from llmfactory.stage.merge import aligned


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    trained(folder, "first", 10)
    trained(folder, "second", 10, f"init={folder}/outputs/first")
    trained(folder, "third", 10, f"init={folder}/outputs/first", "seed=1", "peft=lora", "optim.lr=1e-2")
    return folder


def weights(path: Path) -> dict[str, Tensor]:
    return dict(tensors_behind(io.find(path)))


def merged(folder: Path, name: str, *more: str, models: str = "second", first: str = "first") -> dict[str, Any]:
    others = ", ".join(f"{model}: {folder}/outputs/{model}" for model in models.split())
    return ran(
        folder, name, "stage=merge", f"init={folder}/outputs/{first}", f"stage.models={{{others}}}", "trainer.device=cpu", *more
    )


def test_the_mean_of_runs_is_a_run(folder: Path) -> None:
    result = merged(folder, "mean", models="second third")
    found = weights(Path(result["checkpoint"]))
    parts = [weights(folder / "outputs" / name) for name in ("first", "second", "third")]
    assert list(found) == list(parts[0])
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, sum(part[name] for part in parts) / 3)  # type: ignore[arg-type]
    assert any(not torch.equal(parts[0][name], parts[2][name]) for name in found)  # adapters stand in the weights
    assert result["changes"]["second"] > 0
    assert not (folder / "outputs" / "mean" / "work").exists()
    assert not list((folder / "outputs" / "mean" / "checkpoints").glob(".*"))


def test_what_comes_out_is_measured_written_with_and_trained_further(folder: Path) -> None:
    merged(folder, "half")
    shutil.copy(folder / "sums.jsonl", folder / "measured.jsonl")
    data = ["data=chat", f"data.source.files=[{folder}/measured.jsonl]", *ROWS[1:]]
    losses = {}
    for name in ("first", "half", "second"):
        measure = ["stage=evaluate", f"init={folder}/outputs/{name}", *data, "data.held_out=0.5", "stage.compressors=false"]
        losses[name] = ran(folder, f"measured_{name}", *measure)["held_out_loss"]
    assert losses["half"] < losses["first"]
    said = ran(
        folder,
        "said",
        "stage=generate",
        f"init={folder}/outputs/half",
        "stage.chat=true",
        "stage.prompt='1+1='",
        "stage.max_tokens=4",
    )
    assert len(said["texts"]) == 1
    trained(folder, "further", 2, f"init={folder}/outputs/half")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("slerp", ["stage.method.t=1"]),
        ("task_arithmetic", []),
        ("ties", ["stage.method.density=1"]),
        ("dare", ["stage.method.drop=0"]),
        ("linear", ["stage.weights={init: 0}"]),
    ],
)
def test_each_way_can_give_the_other_model(folder: Path, method: str, more: list[str]) -> None:
    result = merged(folder, f"to_{method}", f"stage/method={method}", *more)
    found, second = weights(Path(result["checkpoint"])), weights(folder / "outputs" / "second")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-5, atol=1e-6)


def test_the_seed_says_what_is_dropped(folder: Path) -> None:
    once, again, other = (
        weights(Path(merged(folder, f"dare_{name}", "stage/method=dare", f"seed={seed}")["checkpoint"]))
        for name, seed in (("once", 5), ("again", 5), ("other", 6))
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not all(torch.equal(once[name], other[name]) for name in once)


def test_it_keeps_a_chat_template(folder: Path) -> None:
    plain = folder / "outputs" / "plain"
    text = ["data=text", f"data.source.files=[{folder}/sums.jsonl]"]
    every = [
        *text,
        "data.seq_len=32",
        "data.held_out=0",
        *MODEL,
        "trainer.max_steps=1",
        "trainer.batch_size=1",
    ]
    every += [
        "trainer.device=cpu",
        "trainer.progress=false",
        "trainer.eval_every=null",
        "trainer.keep_best=false",
        "trainer.sample=false",
    ]
    ran(folder, "plain", "stage=pretrain", *every, "optim/schedule=constant", "optim.schedule.warmup_steps=0")
    assert load_tokenizer(io.find(plain), 300).usage.chat_template is None
    for more, has in (([], True), (["stage.tokenizer=init"], False), (["stage.tokenizer=second"], True)):
        result = merged(folder, f"template_{len(more)}_{has}", *more, first="plain")
        assert (load_tokenizer(Path(result["checkpoint"]), 300).usage.chat_template is not None) == has


def test_other_models_are_refused_by_what_differs(folder: Path) -> None:
    trained(folder, "wide", 1, "model.ffn.hidden=64")
    with pytest.raises(UserError, match=r"wide.* is another model than .*first.*model.ffn.hidden is 64 there and 48 here"):
        merged(folder, "wrong", models="wide")
    with pytest.raises(UserError, match="no_such_run"):
        merged(folder, "wrong2", models="no_such_run")
    with pytest.raises(ConfigError, match="needs a trained model"):
        compose_job(["stage=merge", "stage.models={a: b}", f"output_dir={folder}/nothing"])


def test_a_model_that_holds_no_numbers_is_refused(folder: Path) -> None:
    path = folder / "outputs" / "broken"
    shutil.copytree(folder / "outputs" / "second", path)
    checkpoint = io.find(path)
    made = weights(path)
    made["norm.weight"].fill_(float("nan"))
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.name == "config.yaml"}
    tokenizer = load_tokenizer(checkpoint, 300)

    def attach(place: Path) -> None:
        tokenizer.save(place / "tokenizer")
        for name, content in files.items():
            (place / name).write_bytes(content)

    with io.quiet():
        io.write(path / "checkpoints", 99, Contents(made, {}), {}, World(torch.device("cpu")), attach)
    with pytest.raises(UserError, match="would hold numbers that are infinite or none at all"):
        merged(folder, "wrong3", models="broken")


def test_tensors_are_matched_by_name_in_any_order() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    places = {"init": Path("i"), "a": Path("a")}

    def streams(first: dict[str, Tensor], other: dict[str, Tensor]) -> Any:
        return {"init": iter(first.items()), "a": iter(other.items())}

    found = list(aligned(streams({"x": one, "y": two, "z": three}, {"z": three, "x": one, "y": two}), places))
    assert [name for name, _ in found] == ["x", "y", "z"]
    assert all(pair["init"].shape == pair["a"].shape for _, pair in found)
    with pytest.raises(UserError, match="a has no tensor y, which i has"):
        list(aligned(streams({"x": one, "y": two}, {"x": one}), places))
    for other in ({"x": one, "y": two}, {"y": two, "x": one}):
        with pytest.raises(UserError, match="a has a tensor y, which i has not"):
            list(aligned(streams({"x": one}, other), places))
    with pytest.raises(UserError, match=r"the tensor x is \[2\] in a, and \[1\] in i"):
        list(aligned(streams({"x": one}, {"x": two}), places))
