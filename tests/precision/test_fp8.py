"""float8 in a model: which maps, by which recipe, on which hardware."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmfactory.config.compose import compose_job
from llmfactory.core.errors import UserError
from llmfactory.kernel.eight_bit_linear import EightBit
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.adapter_spec import Adapter as BottleneckAdapter
from llmfactory.peft.spec import Lora
from llmfactory.precision.spec import Fp8, Recipe

SIZE = ["model.vocab_size=300", "model.dim=16", "model.n_layers=2", "model.attention.n_heads=2", "model.ffn.hidden=24"]


def built(*overrides: str) -> Skeleton:
    with torch.device("meta"):
        return compose_job([*overrides, *SIZE, "model.max_positions=64", "data.seq_len=16"]).job.model.build()


def changed(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, EightBit)}


ATTENTION, GATED = {"q", "k", "v", "o"}, {"gate", "up", "down"}
LAYER = {f"attention.{name}" for name in ATTENTION} | {f"ffn.{name}" for name in GATED}


def layers(names: set[str], *numbers: int) -> set[str]:
    return {f"blocks.{number}.{name}" for number in numbers for name in names}


def maps(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_which_maps() -> None:
    model = built("model=llama_tiny")
    there = maps(model)
    Fp8(emulate=True).build("cpu").convert_module(model)
    assert changed(model) == there
    assert len(there) == 14
    for skip, left in (
        (["o"], {name for name in there if not name.endswith(".o")}),
        (["blocks.0.*"], {name for name in there if ".1." in name}),
        (["q", "*.ffn.*"], {name for name in there if ".attention." in name and not name.endswith(".q")}),
    ):
        model = built("model=llama_tiny")
        formats = Fp8(emulate=True, skip=skip).build("cpu")
        formats.convert_module(model)
        assert changed(model) == left
        formats.convert_module(nn.ModuleDict({"root": model}))  # as the strategy does, under other names
        assert changed(model) == left


def test_a_pattern_without_a_meaning() -> None:
    with pytest.raises(UserError, match="no linear map is called w_q; there are "):
        Fp8(emulate=True, skip=["w_q"]).build("cpu").convert_module(built("model=llama_tiny"))
    with pytest.raises(UserError, match="no linear map left"):
        Fp8(emulate=True, skip=["*"]).build("cpu").convert_module(built("model=llama_tiny"))


def test_what_begins_ends_and_routes_stays() -> None:
    model = built("model=bert_tiny", "stage/objective=masked")
    Fp8(emulate=True).build("cpu").convert_module(model)
    assert changed(model)
    assert not {name for name in changed(model) if name.startswith(("head", "embedding"))}
    model = built("model=llama_tiny", "model/ffn=moe", "model.ffn.shared_hidden=8", "model.ffn.shared_gate=true")
    Fp8(emulate=True).build("cpu").convert_module(model)
    assert not {name for name in changed(model) if "gate" in name.split(".")[-1] and "shared_gate" in name}
    assert {name.split(".")[-1] for name in maps(model) - changed(model)} <= {"shared_gate"}


def test_adapters_stay_beside_them() -> None:
    """Under LoRA the frozen base multiplies 8-bit numbers, A and B do not."""
    model = built("model=llama_tiny")
    Lora(rank=2).apply(model)
    Fp8(emulate=True).build("cpu").convert_module(model)
    q = model.get_submodule("blocks.0.attention.q")
    assert isinstance(q, EightBit)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    x = torch.randn(4, 16, requires_grad=True)
    linear = nn.Linear(16, 16, bias=False)
    linear.weight = q.weight
    Fp8(emulate=True).build("cpu").convert_module(alone := nn.ModuleDict({"q": linear}))
    adapter = q.adapters["default"]
    torch.testing.assert_close(q(x), alone["q"](x) + adapter.scale * x @ adapter.a.T @ adapter.b.T)
    q(x).sum().backward()
    assert adapter.a.grad is not None
    assert q.weight.grad is None
    model = built("model=llama_tiny")
    BottleneckAdapter(width=4).apply(model)  # of linear maps of its own
    Fp8(emulate=True).build("cpu").convert_module(model)
    assert maps(model) - changed(model) == {name for name in maps(model) if "adapters" in name.split(".")} != set()


def test_recipes() -> None:
    numbers = {}
    for recipe in Recipe:
        model = built("model=llama_tiny")
        Fp8(emulate=True, recipe=recipe).build("cpu").convert_module(model)
        numbers[recipe] = model.get_submodule("blocks.0.attention.q").numbers
    front, back = torch.float8_e4m3fn, torch.float8_e5m2
    assert (numbers[Recipe.tensor_wise].forward, numbers[Recipe.tensor_wise].backward) == (front, back)
    assert (numbers[Recipe.row_wise].forward, numbers[Recipe.row_wise].backward) == (front, front)
    assert [numbers[recipe].rows for recipe in (Recipe.tensor_wise, Recipe.row_wise)] == [False, True]


def test_hardware_without_float8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="emulate=true"):
        Fp8().build("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match="emulate=true"):
        Fp8().build("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for spec, emulates in ((Fp8(), False), (Fp8(emulate=True), True)):
        model = built("model=llama_tiny")
        spec.build("cuda").convert_module(model)
        assert model.get_submodule("blocks.0.attention.q").numbers.emulate == emulates
