"""Bottleneck adapters against a plain reference of a whole block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmfactory.config.compose import compose_job
from llmfactory.core.context import CausalMask, Context
from llmfactory.model.embedding_model import WordVectors
from llmfactory.model.ffn.spec import Activation
from llmfactory.model.initialize import initialize
from llmfactory.model.spec import EmbeddingModel
from llmfactory.peft.adapter import Bottleneck, adapt, sub_layers
from llmfactory.peft.adapter_spec import Placement
from llmfactory.peft.spec import Adapter


def model_of(preset: str, spec: Adapter | None):
    model = compose_job([f"model={preset}", "toy=true", "stage=describe"]).job.model.build()
    if spec is not None:
        spec.apply(model)
    model.double()
    initialize(model, 3, lambda parameter, full: parameter.copy_(full * 4 if full.dim() > 1 else full))
    return model.eval()


def bottleneck(weights: dict[str, Tensor], path: str, x: Tensor) -> Tensor:
    """Houlsby et al. 2019, figure 2, without the skip-connection."""
    path = f"{path}.adapters.default"
    z = F.relu(x @ weights[f"{path}.down.weight"].T + weights[f"{path}.down.bias"])
    return z @ weights[f"{path}.up.weight"].T + weights[f"{path}.up.bias"]


@torch.no_grad()
@pytest.mark.parametrize("place", list(Placement))
def test_a_pre_norm_block(place: Placement) -> None:
    model = model_of("gpt2_tiny", Adapter(placement=place, width=5, activation=Activation.relu, scale=3.0))
    block, weights = model.blocks[0], dict(model.blocks[0].named_parameters())
    for weight in (weight for name, weight in weights.items() if ".adapters." in name):
        weight.normal_()
    plain = model_of("gpt2_tiny", None).blocks[0]
    x, context = torch.randn(2, 4, model.spec.dim, dtype=torch.float64), Context(torch.arange(4)[None], CausalMask(4))
    attended = plain.attention(plain.attention_norm(x), context)
    if place is Placement.houlsby:
        attended = attended + 3 * bottleneck(weights, "attention", attended)
    h = x + attended
    normed = plain.ffn_norm(h)
    fed = plain.ffn(normed, context)
    want = h + fed + 3 * bottleneck(weights, "ffn", normed if place is Placement.parallel else fed)
    torch.testing.assert_close(block(x, context), want, rtol=0, atol=1e-12)
    assert sum(isinstance(module, Bottleneck) for module in block.modules()) == (2 if place is Placement.houlsby else 1)


@torch.no_grad()
def test_two_beside_a_part_are_added_up() -> None:
    spec = Adapter(placement=Placement.parallel, width=5, activation=Activation.relu)
    model, plain = model_of("gpt2_tiny", spec), model_of("gpt2_tiny", None)
    adapt(spec, model, "other")
    model.double()
    ffn, context = model.blocks[0].ffn, Context(torch.arange(4)[None], CausalMask(4))
    for weight in ffn.adapters.parameters():
        weight.normal_()
    x = torch.randn(2, 4, model.spec.dim, dtype=torch.float64)
    beside = sum(one(x) for one in ffn.adapters.children())
    torch.testing.assert_close(ffn(x, context), plain.blocks[0].ffn(x, context) + beside, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["gpt2_tiny", "lstm_tiny", "t5_small", "mixtral_8x7b"])
def test_training_starts_at_the_base(preset: str) -> None:
    model, plain = model_of(preset, Adapter(width=5)), model_of(preset, None)
    plain.load_state_dict({name: weight for name, weight in model.state_dict().items() if name not in model.added})
    tokens = torch.randint(3, 50, (2, 6))
    rows = {"tokens": tokens, "positions": torch.arange(6).expand(2, 6), "segments": torch.ones_like(tokens)}
    rows |= {
        f"source{name}": rows[field] for name, field in (("", "tokens"), ("_positions", "positions"), ("_segments", "segments"))
    }
    assert torch.equal(model(tokens, model.context(rows)), plain(tokens, plain.context(rows)))


def test_where_they_stand() -> None:
    t5 = model_of("t5_small", None)
    blocks = len(t5.encoder.blocks) + len(t5.decoder.blocks)
    assert len(list(sub_layers(t5, attention=True))) == 2 * blocks
    assert len(list(sub_layers(t5, attention=False))) == blocks
    lstm = model_of("lstm_tiny", None)  # without a feed-forward part: what carries the state stands for it
    assert list(sub_layers(lstm, attention=False)) == [layer.mixer for layer in lstm.layers]


def test_dropout_is_of_training() -> None:
    model = model_of("gpt2_tiny", Adapter(width=50, dropout=0.5))
    (first, *_) = (module for module in model.modules() if isinstance(module, Bottleneck))
    with torch.no_grad():
        first.up.weight.normal_()
    x = torch.randn(3, model.spec.dim, dtype=torch.float64)
    assert torch.equal(first(x), first(x))
    first.train()
    assert not torch.equal(first(x), first(x))


def test_models_without_blocks() -> None:
    words = WordVectors(EmbeddingModel(vocab_size=9, dim=4, max_positions=3))
    with pytest.raises(TypeError, match="no blocks"):
        adapt(Adapter(), words, "default")
