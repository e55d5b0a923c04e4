"""stage=export stage/format=peft: what is written, what must be there, and what comes back by init=."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from toy_job import toy_job, train

from llmfactory.checkpoint.names.adapter import CONFIG, WEIGHTS
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.peft.spec import AdapterSpec, Freeze, Lora, Prompt
from llmfactory.stage.format.spec import Hf, Peft
from llmfactory.stage.initial import checkpoint_of, fill, load_tokenizer
from llmfactory.stage.spec import Export

METHODS: dict[str, AdapterSpec] = {
    "lora": Lora(rank=2, train=["norm"]),
    "prompt": Prompt(tokens=3),
    "freeze": Freeze(last_layers=1),
}


def job(folder: Path, **changes: Any) -> Job:
    ends = {"trainer__max_steps": 3, "trainer__eval_every": None, "trainer__save_every": None, "optim__lr": 0.05}
    return toy_job(folder, **{**ends, **changes})


def export(start: Job, path: Path, form: Any) -> dict[str, Any]:
    stage = Export(path=str(path), format=form)
    return stage.build().run(dataclasses.replace(start, stage=stage), None)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, the same for others to load, and a run of each method beside the one or the other."""
    folder = tmp_path_factory.mktemp("peft")
    train(job(folder), folder / "base")
    export(job(folder, init=str(folder / "base")), folder / "hf", Hf())
    train(job(folder, init=str(folder / "base"), peft=METHODS["lora"]), folder / "run")
    for name, spec in METHODS.items():
        train(job(folder, init=str(folder / "hf"), peft=spec), folder / name)
    return folder


def logits(start: Job) -> torch.Tensor:
    model = start.model.build()
    if not start.peft.merges:
        start.peft.apply(model)
    fill(model, checkpoint_of(start, "testing"))
    tokens = torch.arange(24).view(2, 12)
    batch = {"tokens": tokens, "positions": torch.arange(12).expand(2, 12), "segments": torch.ones_like(tokens)}
    with torch.no_grad():
        return model.eval().head(model(tokens, model.context(batch)))


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_what_was_trained_beside_a_published_model(home: Path, method: str, tmp_path: Path) -> None:
    spec = METHODS[method]
    start = job(home, init=str(home / method), **({} if spec.merges else {"peft": spec}))
    result = export(start, tmp_path / "adapter", Peft())
    assert result["base"] == str(home / "hf")
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["base_model_name_or_path"] == str(home / "hf")
    back = dataclasses.replace(start, init=str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(back), logits(start), rtol=1e-5, atol=1e-6)
    assert load_tokenizer(tmp_path / "adapter", 257).encode("abc") == load_tokenizer(home / "hf", 257).encode("abc")


def test_a_base_of_ours_is_written_first(home: Path, tmp_path: Path) -> None:
    start = job(home, init=str(home / "run"))
    with pytest.raises(UserError, match=r"no folder of the Hugging Face format: write the base there first .*stage.format.base"):
        export(start, tmp_path / "adapter", Peft())
    export(start, tmp_path / "adapter", Peft(base=str(home / "hf")))
    back = dataclasses.replace(start, init=str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(back), logits(start), rtol=1e-5, atol=1e-6)


def test_another_base_is_refused(home: Path, tmp_path: Path) -> None:
    other = shutil.copytree(home / "hf", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 2
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"is not what .* was trained beside: its blocks.0.ffn.up.weight differs"):
        export(job(home, init=str(home / "run")), tmp_path / "adapter", Peft(base=str(other)))
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("base", "holds a whole model and no adapters: write it with stage/format=hf"),
        ("freeze", "peft has nothing like peft=freeze, .*: stage/format=hf writes"),
    ],
)
def test_what_has_no_form_there(home: Path, run: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(job(home, init=str(home / run)), tmp_path / "adapter", Peft())


def written(home: Path, path: Path) -> Path:
    export(job(home, init=str(home / "lora")), path, Peft())
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model_name_or_path": "nowhere/at-all"}, "is no folder here; write the path of its folder there"),
        ({"peft_type": "LOHA"}, "peft_type=LOHA has no counterpart here: there are LORA"),
        ({"lora_bias": True}, "lora_bias=True has no counterpart here"),
        ({"r": 2, "lora_alpha": "much"}, "lora_alpha='much' is no number"),
    ],
)
def test_folders_that_are_not_understood(home: Path, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(home, tmp_path / "adapter")
    config = json.loads((path / CONFIG).read_text())
    (path / CONFIG).write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message):
        logits(job(home, init=str(path)))


def test_tensors_that_are_not_understood(home: Path, tmp_path: Path) -> None:
    path = written(home, tmp_path / "adapter")
    tensors = load_file(path / WEIGHTS)
    save_file({**tensors, "base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2)}, path / WEIGHTS)
    with pytest.raises(UserError, match="lora_embedding_A, which has no counterpart here"):
        logits(job(home, init=str(path)))
    save_file({name.replace("layers.0", "layers.9"): tensor for name, tensor in tensors.items()}, path / WEIGHTS)
    with pytest.raises(UserError, match=r"layers.9.* does not have"):
        logits(job(home, init=str(path)))


def test_a_pickle_is_never_opened(home: Path, tmp_path: Path) -> None:
    path = written(home, tmp_path / "adapter")
    (path / WEIGHTS).rename(path / "adapter_model.bin")
    with pytest.raises(UserError, match="a pickle, which could run code"):
        logits(job(home, init=str(path)))
