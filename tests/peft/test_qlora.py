from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from toy_job import toy_job

from llmfactory.checkpoint import io
from llmfactory.checkpoint.tensors import model_tensors
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.core.sharding import Constant, Parameter
from llmfactory.kernel.quantized_linear import nf4, weight_of
from llmfactory.model.count import parameters
from llmfactory.model.declarations import declarations
from llmfactory.model.initialize import initialize
from llmfactory.model.packed import packed
from llmfactory.parallel.mesh import World
from llmfactory.peft.lora_spec import Start
from llmfactory.peft.merge import Changes, merge
from llmfactory.peft.part import adapters
from llmfactory.peft.qlora import QuantizedLinear, quantize
from llmfactory.peft.qlora_spec import Bits, Qlora

MAPS = ["attention.q", "attention.k", "attention.v", "attention.o", "ffn.gate", "ffn.up", "ffn.down"]


def build(tmp_path: Path, bits: Bits | None = None, seed: int = 3):
    model = toy_job(tmp_path).model.build()
    if bits is not None:
        quantize(model, bits)
    initialize(model, seed)
    return model


def logits(model):
    tokens = torch.arange(12).view(2, 6)
    context = Context(torch.arange(6).expand(2, 6), CausalMask(6, tokens.device))
    return model.head(model(tokens, context))


@pytest.mark.parametrize("bits", Bits)
def test_the_blocks_maps_and_nothing_else(tmp_path, bits):
    plain, model = build(tmp_path), build(tmp_path, bits)
    maps = [f"blocks.{layer}.{name}.weight" for layer in range(2) for name in MAPS]
    assert list(packed(model)) == maps
    assert not set(maps) & set(dict(model.named_parameters()))
    assert model.added == model.borrowed == {name for name, _ in model.named_parameters()} - set(dict(plain.named_parameters()))
    assert declarations(model).keys() == dict(model.named_parameters()).keys()
    for name, weight in plain.named_parameters():
        if name not in maps:
            assert torch.equal(model.get_parameter(name), weight)
    assert model.blocks[0].visited() == plain.blocks[0].visited()
    assert parameters(model) == parameters(plain)


def test_a_quantized_model_computes_with_what_its_matrices_became(tmp_path):
    plain, model = build(tmp_path), build(tmp_path, Bits.nf4)
    with torch.no_grad():
        for name, part in packed(model).items():
            weight = plain.get_parameter(name)
            assert torch.equal(part.weight, weight_of(nf4(weight), weight.shape[1]))
            weight.copy_(part.weight)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-6)


def test_a_bias_stays_a_parameter():
    linear = torch.nn.Linear(64, 3)
    quantized = QuantizedLinear(linear, Bits.nf4, Parameter(Constant(0.0)))
    for parameter, content in quantized.contents(linear.weight.detach()):
        parameter.copy_(content)
    assert quantized.bias is linear.bias
    x = torch.randn(2, 64)
    torch.testing.assert_close(quantized(x), F.linear(x, quantized.weight, linear.bias))


@pytest.mark.parametrize("bits", Bits)
def test_from_a_checkpoint_one_matrix_after_the_other(tmp_path, bits, monkeypatch):
    plain = build(tmp_path, seed=5)
    path = io.save(tmp_path / "checkpoints", 1, plain, None, {}, World(torch.device("cpu")))
    model, read, real = build(tmp_path, bits), [], io._read
    monkeypatch.setattr(io, "_read", lambda path, tensors, world: (read.append(list(tensors)), real(path, tensors, world)))
    io.load_weights(path, model)
    matrices = packed(model)
    assert read[1:] == [[name] for name in matrices]
    assert not set(read[0]) & set(matrices)
    for name, part in matrices.items():
        want = part.pack(plain.get_parameter(name).detach())
        assert all(torch.equal(part.get_parameter(own), content) for own, content in want.items()), name
    assert torch.equal(model.get_parameter("embedding.weight"), plain.get_parameter("embedding.weight"))


def test_run_checkpoints_leave_it_out(tmp_path):
    assert not [name for name in model_tensors(build(tmp_path, Bits.nf4)) if "codes" in name or "scales" in name]


def test_merged_it_is_the_function_that_was_trained(tmp_path):
    """Of matrices that no adapter stands beside, too."""
    plain = toy_job(tmp_path).model.build()
    initialize(plain, 3)
    model = toy_job(tmp_path).model.build()
    Qlora(rank=2, targets=["q"]).apply(model)
    initialize(model, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_()
    own = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.device("meta"):
        donor = toy_job(tmp_path).model.build()
        Qlora(rank=2, targets=["q"]).apply(donor)
    changes = Changes(donor, own)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(changes.made(name, parameter))
    assert torch.equal(plain.blocks[0].ffn.up.weight, model.blocks[0].ffn.up.weight)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-6)


def test_in_place_nothing_is_merged(tmp_path):
    model = toy_job(tmp_path).model.build()
    Qlora(rank=2).apply(model)
    initialize(model, 3)
    merge(model)
    assert all(adapter.active for _, adapter in adapters(model))


def test_only_the_adapters_have_gradients(tmp_path):
    model = toy_job(tmp_path).model.build()
    Qlora(rank=2).apply(model)
    initialize(model, 3)
    logits(model).square().sum().backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert names == {f"{path}.{one}" for path, _ in adapters(model) for one in "ab"}


def test_pissa_is_refused():
    with pytest.raises(ConfigError, match="out of the base"):
        Qlora(start=Start.pissa)
