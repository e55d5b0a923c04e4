"""Several adapters beside one base: one after the other, all together, and those that cannot stand together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_job import filled, toy_job, train

from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.parallel.mesh import World
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.spec import AdapterSpec, Bitfit, Ia3, Lora, Prefix, Prompt, Qlora
from llmfactory.precision.spec import Fp32
from llmfactory.run.fit import build_stage
from llmfactory.stage.adapters import load_with, turns
from llmfactory.stage.format.peft import write_adapter
from llmfactory.stage.format.spec import Hf
from llmfactory.stage.initial import checkpoint_of, fill
from llmfactory.stage.spec import Export, Generate

HERE = World(torch.device("cpu"))
METHODS: dict[str, AdapterSpec] = {
    "lora": Lora(rank=2, start=Start.gaussian),
    "other": Lora(rank=3, alpha=9.0, targets=["q", "down"]),
    "ia3": Ia3(),
    "prompt": Prompt(tokens=3),
    "qlora": Qlora(rank=2),
    "pissa": Lora(rank=2, start=Start.pissa),
    "bitfit": Bitfit(),
    "thawed": Lora(rank=2, train=["norm"]),
}


def job(folder: Path, **changes: Any) -> Job:
    ends = {"trainer__max_steps": 3, "trainer__eval_every": None, "trainer__save_every": None, "optim__lr": 0.05}
    return toy_job(folder, **{**ends, "model__ffn__bias": True, **changes})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a run of each method beside it."""
    folder = tmp_path_factory.mktemp("adapters")
    train(job(folder), folder / "base")
    train(job(folder, seed=3), folder / "another")
    for number, (name, spec) in enumerate(METHODS.items()):
        train(job(folder, init=str(folder / "base"), peft=spec, seed=number), folder / name)
    return folder


def beside(home: Path, *names: str, weights: dict[str, float] | None = None, base: str = "base") -> Any:
    start = job(home, init=str(home / base))
    named = {name: str(home / name) for name in names}
    return load_with(start, checkpoint_of(start, "testing"), named, weights or {}, Fp32().build("cpu"), HERE)


def alone(home: Path, name: str) -> Any:
    start = job(home, init=str(home / name))
    model = start.model.build()
    if not METHODS[name].merges:
        METHODS[name].apply(model)
    fill(model, checkpoint_of(start, "testing"))
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(24).view(2, 12)
    batch = {"tokens": tokens, "positions": torch.arange(12).expand(2, 12), "segments": torch.ones_like(tokens)}
    with torch.no_grad():
        return model.head(model(tokens, model.context(batch)))


def test_switched_each_is_what_it_is_alone(home: Path) -> None:
    names = ["lora", "other", "ia3", "prompt"]
    model, found = beside(home, *names), {}
    for title in turns(model, names, stacked=False):
        found[title] = logits(model)
    assert list(found) == names
    for name in names:
        torch.testing.assert_close(found[name], logits(alone(home, name)), rtol=1e-4, atol=1e-5)


def test_stacked_their_changes_are_added(home: Path) -> None:
    model = beside(home, "lora", "other", weights={"other": 0.5})
    assert list(turns(model, ["lora", "other"], stacked=True)) == ["lora + other"]
    base = alone(home, "lora")
    parts = {name: alone(home, name).state_dict() for name in ("lora", "other")}
    start = job(home, init=str(home / "base"))
    plain = start.model.build()
    fill(plain, checkpoint_of(start, "testing"))
    before = {name: weight.clone() for name, weight in plain.state_dict().items()}
    changed = {name: w + (parts["lora"][name] - w) + 0.5 * (parts["other"][name] - w) for name, w in before.items()}
    base.load_state_dict(changed)
    torch.testing.assert_close(logits(model), logits(base), rtol=1e-4, atol=1e-5)


def test_a_base_in_few_bits(home: Path) -> None:
    model = beside(home, "qlora")
    list(turns(model, ["qlora"], stacked=False))
    torch.testing.assert_close(logits(model), logits(alone(home, "qlora")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lora", "another"], "is a whole model and no adapter"),
        (["bitfit"], "has changed parameters of the model itself"),
        (["thawed"], r"has changed parameters of the model itself \(norm"),
        (["pissa"], "stage/format=peft"),
        (["lora", "qlora"], "in different forms"),
    ],
)
def test_what_cannot_stand_together(home: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        beside(home, *names)


def test_another_base_is_refused(home: Path) -> None:
    with pytest.raises(UserError, match=r"was trained beside .*base.*, and init=.*another.* is another model"):
        beside(home, "lora", base="another")


def test_only_low_rank_changes_are_weighed(home: Path) -> None:
    with pytest.raises(UserError, match="no low-rank change"):
        beside(home, "ia3", weights={"ia3": 0.5})


def test_they_answer_in_their_turn(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = Generate(
        prompt="the ", adapters={"one": str(home / "lora"), "two": str(home / "other")}, max_tokens=5, temperature=0.0
    )
    start = dataclasses.replace(job(home, init=str(home / "base")), stage=spec)
    texts = spec.build().run(start, None)["texts"]
    assert list(texts) == ["one", "two"]
    out = capsys.readouterr().out
    assert out.index("--- one") < out.index("--- two")
    single = Generate(prompt="the ", max_tokens=5, temperature=0.0)
    for name, run in (("one", "lora"), ("two", "other")):
        start = dataclasses.replace(job(home, init=str(home / run)), stage=single)
        assert single.build().run(start, None)["texts"] == texts[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": {"a.b": "x"}}, "no name for an adapter"),
        ({"adapters": {"a": "x"}, "adapter_weights": {"b": 1.0}}, "no adapter is called so"),
        ({"adapters": {"a": "x"}, "stacked": True}, "to add up"),
    ],
)
def test_what_the_spec_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Generate(prompt="x", **changes)


# ---- training on


def begun(start: Job) -> Any:
    """The model that training begins with."""
    return filled(build_stage(start, True)).model.eval()


def goes_on(folder: Path, start: Job, before: torch.Tensor) -> None:
    """Training begins with what the run had learned, moves on from there, and leaves the base as it is."""
    model = begun(start)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    after = train(start, folder)[0].model
    assert not torch.allclose(logits(after), before, atol=1e-3)
    assert frozen
    assert all(torch.equal(after.get_parameter(name), weight) for name, weight in frozen.items())


def test_prefixes_are_trained_on(home: Path, tmp_path: Path) -> None:
    """They stay adapters: the same ones, not new ones beside them."""
    spec = Prefix(tokens=3, hidden=6)
    first = train(job(home, init=str(home / "base"), peft=spec, seed=11), tmp_path / "first")[0].model
    start = job(home, init=str(tmp_path / "first"), peft=spec, seed=12)
    goes_on(tmp_path / "second", start, logits(first))


@pytest.mark.parametrize("spec", [Lora(rank=2, start=Start.gaussian), Prompt(tokens=3)], ids=["lora", "prompt"])
def test_folders_of_peft_are_trained_on(spec: AdapterSpec, tmp_path: Path) -> None:
    """What merges stands in the weights, beside new adapters; what does not goes on as it is."""
    plain = {"model__ffn__bias": False}
    train(job(tmp_path, **plain), tmp_path / "base")
    writing = job(tmp_path, **plain, init=str(tmp_path / "base"))
    export = Export(path=str(tmp_path / "published"), format=Hf())
    export.build().run(dataclasses.replace(writing, stage=export), None)
    fitted = train(job(tmp_path, **plain, init=str(tmp_path / "published"), peft=spec), tmp_path / "first")[0]
    assert fitted.checkpoint is not None
    write_adapter(fitted.checkpoint, tmp_path / "folder", None)
    start = job(tmp_path, **plain, init=str(tmp_path / "folder"), peft=spec if not spec.merges else Lora(rank=1), seed=5)
    goes_on(tmp_path / "second", start, logits(fitted.model))
