"""Against DeepseekV3Attention of the reference library, with equal weights."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.core.errors import ConfigError
from llmfactory.core.sharding import Layout
from llmfactory.inference.cache import KvCache
from llmfactory.inference.decoding import columns
from llmfactory.model.attention.spec import Mla
from llmfactory.model.position.spec import Rope, Rope2d

DIM, HEADS, LENGTH = 24, 3, 7
SIZES = {"kv_lora_rank": 10, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 6}


def filled(module):
    for number, parameter in enumerate(module.parameters()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(number))
    return module.double().eval()


@pytest.fixture
def part(site):
    """The attention of one block, and the stack's position part."""

    def make(layer=0, **changes):
        spec = Mla(n_heads=HEADS, **{**SIZES, **changes})
        here = site(
            layer=layer, position=Rope(theta=50.0, interleaved=True), dim=DIM, n_heads=HEADS, head_dim=spec.head_width(DIM)
        )
        return filled(spec.build(here)), here.position

    return make


def rows(seed=0):
    return torch.randn(2, LENGTH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(parts, x, context):
    attention, position = parts
    return attention(x, position.prepare(context, x.dtype))


def theirs_like(ours, q_lora_rank, bias):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    config = DeepseekV3Config(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        q_lora_rank=q_lora_rank,
        attention_bias=bias,
        rope_interleave=True,
        **SIZES,
    )
    config._attn_implementation = "eager"
    made = DeepseekV3Attention(config, 0).double().eval()
    names = {"kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv": "kv_b_proj", "o": "o_proj"}
    more = {"q": "q_proj"} if q_lora_rank is None else {"q_down": "q_a_proj", "q_norm": "q_a_layernorm", "q": "q_b_proj"}
    mine = dict(ours.named_parameters())
    weights = {
        f"{their}.{kind}": mine[f"{our}.{kind}"]
        for our, their in (names | more).items()
        for kind in ("weight", "bias")
        if f"{our}.{kind}" in mine
    }
    made.load_state_dict(weights)
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("q_lora_rank", [None, 8])
def test_equals_the_reference_library(part, q_lora_rank, bias):
    parts, x = part(q_lora_rank=q_lora_rank, bias=bias), rows()
    theirs = theirs_like(parts[0], q_lora_rank, bias)
    positions = torch.arange(LENGTH).expand(2, LENGTH)
    angle = positions[..., None] / 50.0 ** (torch.arange(0, 4, 2, dtype=torch.float64) / 4)
    angle = torch.cat((angle, angle), -1)
    seen = torch.full((LENGTH, LENGTH), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    want, _ = theirs(x, (angle.cos(), angle.sin()), seen)
    # Theirs normalizes and takes the softmax in float32 whatever the weights are.
    close = {"rtol": 0, "atol": 1e-5 * float(want.detach().abs().max())}
    torch.testing.assert_close(run(parts, x, Context(positions, CausalMask(LENGTH))), want, **close)


@pytest.mark.parametrize("padding", [[0, 0], [0, 2]])
def test_steps_equal_the_whole_from_short_vectors_alone(part, padding):
    parts, x, state = part(q_lora_rank=8, layer=2), rows(), KvCache(LENGTH)
    whole = run(parts, x, columns(padding, 0, LENGTH, x.device))
    pieces = [
        run(parts, x[:, start:end], columns(padding, start, end, x.device).with_(state=state))
        for start, end in ((0, 3), (3, 4), (4, 7))
    ]
    got = torch.cat(pieces, 1)
    torch.testing.assert_close(got[1, padding[1] :], whole[1, padding[1] :], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got[0], whole[0], rtol=1e-10, atol=1e-10)
    assert [tuple(kept.shape) for kept in state._layers[2]] == [(2, 1, LENGTH, 10), (2, 1, LENGTH, 4)]


def test_bias_scale_and_documents_reach_the_scores(part):
    """Both forms, against the equation with keys and values of every head."""
    from llmfactory.model.attention import reference

    attention, position = part(scale=0.9)
    x, bias = rows(), torch.randn(1, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    mask = DocumentMask(torch.tensor([[1, 1, 1, 2, 2, 2, 0], [1] * 7]))
    context = position.prepare(Context(torch.arange(LENGTH).expand(2, LENGTH), mask, bias=bias), x.dtype)
    q_plain, q_turned = (x @ attention.q.weight.T).view(2, LENGTH, HEADS, 9).transpose(1, 2).split((5, 4), -1)
    down = x @ attention.kv_down.weight.T
    c = attention.kv_norm(down[..., :10])
    q_turned, k_turned = position.rotate(q_turned, down[:, None, :, 10:], context)
    k, v = (c @ attention.kv.weight.T).view(2, LENGTH, HEADS, 11).transpose(1, 2).split((5, 6), -1)
    q, k = torch.cat((q_plain, q_turned), -1), torch.cat((k, k_turned.expand(-1, HEADS, -1, -1)), -1)
    y = reference.attend(q, k, v, mask, bias, scale=0.9)
    want = y.transpose(1, 2).flatten(2) @ attention.o.weight.T
    torch.testing.assert_close(attention(x, context), want, rtol=1e-10, atol=1e-10)
    absorbed = attention._absorbed(q_plain, q_turned, c[:, None], k_turned, context)
    torch.testing.assert_close(absorbed, y, rtol=1e-10, atol=1e-10)


def test_dropout_in_training_only(part):
    parts, x, context = part(dropout=0.5), rows(), Context(torch.arange(LENGTH)[None], CausalMask(LENGTH))
    torch.testing.assert_close(run(parts, x, context), run(part(), x, context))
    parts[0].train()
    assert not torch.equal(run(parts, x, context), run(parts, x, context))


def test_declarations(part):
    declared = part(q_lora_rank=8, bias=True)[0].declare()
    layouts = {name: entry.layout for name, entry in declared.items()}
    assert {name for name, layout in layouts.items() if layout is Layout.column} == {"q.weight", "kv.weight"}
    assert {name for name, layout in layouts.items() if layout is Layout.row} == {"o.weight"}
    assert {name for name, entry in declared.items() if not entry.decay} == {"q_down.bias", "kv_down.bias", "o.bias"}
    assert declared["o.weight"].start.std == 0.005
    assert declared["kv.weight"].start.std == 0.02


def test_problems_and_sizes(llama):
    with pytest.raises(ConfigError) as caught:
        Mla(n_heads=2, kv_lora_rank=0, q_lora_rank=0, qk_nope_head_dim=0, qk_rope_head_dim=1, v_head_dim=0, eps=0.0)
    repairs = "kv_lora_rank=1 q_lora_rank=1 qk_nope_head_dim=1 v_head_dim=1 qk_rope_head_dim=2 eps=1e-06"
    assert " ".join(problem.repair for problem in caught.value.problems) == repairs
    with pytest.raises(ConfigError) as caught:
        llama(attention=Mla(n_heads=5, **{**SIZES, "qk_rope_head_dim": 6}), position=Rope2d())
    (problem,) = caught.value.problems
    assert (problem.path, problem.repair) == ("attention.qk_rope_head_dim", "attention.qk_rope_head_dim=8")
    spec = Mla(n_heads=128, kv_lora_rank=512, q_lora_rank=1536, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    assert spec.score_width(7168) == 128 * (128 + 64 + 128)
    assert spec.small(32 / 7168) == {
        "n_heads": 4,
        "kv_lora_rank": 4,
        "q_lora_rank": 8,
        "qk_nope_head_dim": 20,
        "qk_rope_head_dim": 8,
        "v_head_dim": 20,
    }
