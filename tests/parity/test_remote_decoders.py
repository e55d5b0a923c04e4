"""Decoders that were published with code of their own and are in no library: equal logits with their equations, written here
from the papers, on tensors under their published names.

Legend: x [T, D], one row without padding; P holds the tensors.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.translate import check_names, to_ours, to_theirs
from llmfactory.core.context import CausalMask, Context, PrefixMask
from llmfactory.core.errors import UserError

TOKENS = torch.randint(0, 97, (13,), generator=torch.Generator().manual_seed(3))
LLAMA = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}


def pair(config):
    """Our model, and random tensors in their shapes and under their names that it holds, in float64."""
    family = family_of(config)
    spec = family.spec(config)
    model = spec.build().double().eval()
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=numbers, dtype=torch.float64) * 0.3)
            if parameter.dim() == 1:
                parameter.add_(0.5)
    tensors = dict(to_theirs(family.entries(spec), dict(model.named_parameters())))
    check_names(family, spec, tensors)
    back = dict(to_ours(family.entries(spec), tensors.__getitem__))
    assert all(torch.equal(back[name], parameter) for name, parameter in model.named_parameters()), "a round trip is bit for bit"
    assert family.spec(family.config(spec)) == spec
    return model, {name: tensor.detach() for name, tensor in tensors.items()}


def logits(model, context):
    with torch.no_grad():
        return model.head(model(TOKENS[None], context))[0]


def causal(length=13):
    return Context(torch.arange(length)[None], CausalMask(length))


def rms(x, gain, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def layer_norm(x, P, name, eps=1e-5):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt() * P[f"{name}.weight"] + P[
        f"{name}.bias"
    ]


def linear(x, P, name):
    return x @ P[f"{name}.weight"].T + P.get(f"{name}.bias", 0)


def angles(positions, width, theta=10000.0):
    return positions[:, None].double() * theta ** (-torch.arange(0, width, 2).double() / width)


def turn_halves(x, positions):
    """[T, D]: coordinate i and i + D/2 turn together."""
    a, b = x.chunk(2, -1)
    angle = angles(positions, x.shape[-1])
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def turn_neighbors(x, positions):
    """[T, D]: coordinates 2i and 2i + 1 turn together."""
    a, b = x[:, ::2], x[:, 1::2]
    angle = angles(positions, x.shape[-1])
    return torch.stack((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1).flatten(1)


def attend(q, k, v, seen, bias=0.0):
    scores = q @ k.T / math.sqrt(q.shape[-1]) + bias
    return scores.masked_fill(~seen, -math.inf).softmax(-1) @ v


BELOW = torch.ones(13, 13, dtype=torch.bool).tril()
STEPS = torch.arange(13)


def llama(P, qkv, *, heads, eps=1e-6, positions="rotary"):
    """Touvron et al. 2023, `qkv(x, layer)` giving the projections; ALiBi as Press et al. 2022 for 6 heads: slopes 2^-2 .. 2^-8, and
    of 8 heads the first and third."""
    slopes = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    x = P["model.embed_tokens.weight"][TOKENS]
    for layer in range(2):
        at = f"model.layers.{layer}"
        q, k, v = (part.chunk(heads, -1) for part in qkv(rms(x, P[f"{at}.input_layernorm.weight"], eps), f"{at}.self_attn"))
        out = []
        for head in range(heads):
            if positions == "rotary":
                out.append(attend(turn_halves(q[head], STEPS), turn_halves(k[head], STEPS), v[head], BELOW))
            else:
                out.append(attend(q[head], k[head], v[head], BELOW, -slopes[head] * (STEPS[:, None] - STEPS)))
        x = x + linear(torch.cat(out, -1), P, f"{at}.self_attn.o_proj")
        y = rms(x, P[f"{at}.post_attention_layernorm.weight"], eps)
        x = x + linear(F.silu(linear(y, P, f"{at}.mlp.gate_proj")) * linear(y, P, f"{at}.mlp.up_proj"), P, f"{at}.mlp.down_proj")
    return rms(x, P["model.norm.weight"], eps)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
@pytest.mark.parametrize("vocab", [97, 125_696])
def test_baichuan(positions, vocab):
    """7B and 13B, first and second generation: the second divides the rows of the head's matrix by their lengths."""
    length = {"max_position_embeddings": 64} if positions == "rotary" else {"model_max_length": 64}
    model, P = pair({**LLAMA, **length, "model_type": "baichuan", "vocab_size": vocab})
    hidden = llama(P, lambda x, at: linear(x, P, f"{at}.W_pack").chunk(3, -1), heads=6, positions=positions)
    matrix = P["lm_head.weight"]
    if vocab != 97:
        matrix = matrix / matrix.square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(logits(model, causal()), hidden @ matrix.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_internlm(bias):
    """7B with biases of all four projections, 20B without."""
    model, P = pair({**LLAMA, "max_position_embeddings": 64, "model_type": "internlm", "bias": bias})
    hidden = llama(P, lambda x, at: [linear(x, P, f"{at}.{name}_proj") for name in "qkv"], heads=6)
    assert ("model.layers.0.self_attn.o_proj.bias" in P) is bias
    torch.testing.assert_close(logits(model, causal()), hidden @ P["lm_head.weight"].T, rtol=1e-9, atol=1e-9)


def test_internlm_stretches_its_rotation_beyond_the_trained_length():
    """`rotary.type=dynamic`, of the 7B: theta (L / L')^(D / (D - 2)) from the trained length L' = 8 on."""
    rotary = {"base": 10000, "type": "dynamic"}
    model, _ = pair({**LLAMA, "max_position_embeddings": 8, "model_type": "internlm", "rotary": rotary})
    assert (model.spec.position.scaling.trained_positions, model.spec.position.scaling.factor) == (8, 1.0)
    stretched, _ = pair({**LLAMA, "max_position_embeddings": 64, "model_type": "internlm"})
    stretched.load_state_dict(model.state_dict())
    stretched.position.theta = 10000.0 * (13 / 8) ** (4 / 2)
    torch.testing.assert_close(logits(model, causal()), logits(stretched, causal()), rtol=1e-9, atol=1e-9)


GLM = {"model_type": "chatglm", "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "layernorm_epsilon": 1e-5}


def test_chatglm():
    """ChatGLM-6B as its code goes: the norm first, the residual from behind it, alpha = sqrt(2 N); half of each head turned by the
    place in the text, half by the place in the answer; the prompt is seen from both sides."""
    config = {**GLM, "vocab_size": 97, "inner_hidden_size": 48, "max_sequence_length": 64, "position_encoding_2d": True}
    model, P = pair(config)
    prompt, alpha = 5, math.sqrt(2 * 2)
    place, step = STEPS.clamp_max(prompt - 1), (STEPS - prompt + 1).clamp_min(0)
    seen = BELOW.clone()
    seen[:prompt, :prompt] = True
    x = P["transformer.word_embeddings.weight"][TOKENS]
    for layer in range(2):
        at = f"transformer.layers.{layer}"
        entered = layer_norm(x, P, f"{at}.input_layernorm")
        out = []
        for fused in linear(entered, P, f"{at}.attention.query_key_value").chunk(4, -1):
            q, k, v = fused.chunk(3, -1)
            q, k = (torch.cat((turn_halves(y[:, :4], place), turn_halves(y[:, 4:], step)), -1) for y in (q, k))
            out.append(attend(q, k, v, seen))
        x = entered * alpha + linear(torch.cat(out, -1), P, f"{at}.attention.dense")
        entered = layer_norm(x, P, f"{at}.post_attention_layernorm")
        up = F.gelu(linear(entered, P, f"{at}.mlp.dense_h_to_4h"), approximate="tanh")
        x = entered * alpha + linear(up, P, f"{at}.mlp.dense_4h_to_h")
    want = layer_norm(x, P, "transformer.final_layernorm") @ P["transformer.word_embeddings.weight"].T
    prefix = (prompt > STEPS).long()[None]
    context = Context(torch.stack((place, step))[None], PrefixMask(prefix, torch.ones_like(prefix)))
    torch.testing.assert_close(logits(model, context), want, rtol=1e-9, atol=1e-9)


def test_chatglm_is_deep_norm():
    """The graph of its code is post-norm with a norm of the embeddings: the norm of each sub-layer's output opens the next one."""
    config = {**GLM, "vocab_size": 97, "inner_hidden_size": 48, "max_sequence_length": 64}
    model, P = pair(config)
    assert model.blocks[0].alpha == 2.0
    assert torch.equal(model.embedding_norm.weight, P["transformer.layers.0.input_layernorm.weight"])
    assert torch.equal(model.blocks[0].ffn_norm.weight, P["transformer.layers.1.input_layernorm.weight"])
    assert torch.equal(model.blocks[1].ffn_norm.weight, P["transformer.final_layernorm.weight"])


@pytest.mark.parametrize("groups", [2, None])
def test_chatglm2(groups):
    config = {
        **GLM,
        "padded_vocab_size": 97,
        "ffn_hidden_size": 40,
        "kv_channels": 8,
        "seq_length": 64,
        "multi_query_attention": groups is not None,
        "multi_query_group_num": groups or 4,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "rmsnorm": True,
        "post_layer_norm": True,
        "original_rope": True,
    }
    model, P = pair(config)
    kv = groups or 4
    at = "transformer.encoder"
    x = P["transformer.embedding.word_embeddings.weight"][TOKENS]
    for layer in range(2):
        here = f"{at}.layers.{layer}"
        fused = linear(rms(x, P[f"{here}.input_layernorm.weight"], 1e-5), P, f"{here}.self_attention.query_key_value")
        q, k, v = (y.split(8, -1) for y in fused.split([32, 8 * kv, 8 * kv], -1))
        turned = [[torch.cat((turn_neighbors(y[:, :4], STEPS), y[:, 4:]), -1) for y in ys] for ys in (q, k)]
        out = [attend(turned[0][head], turned[1][head * kv // 4], v[head * kv // 4], BELOW) for head in range(4)]
        x = x + linear(torch.cat(out, -1), P, f"{here}.self_attention.dense")
        gate, up = linear(rms(x, P[f"{here}.post_attention_layernorm.weight"], 1e-5), P, f"{here}.mlp.dense_h_to_4h").chunk(2, -1)
        x = x + linear(F.silu(gate) * up, P, f"{here}.mlp.dense_4h_to_h")
    want = linear(rms(x, P[f"{at}.final_layernorm.weight"], 1e-5), P, "transformer.output_layer")
    torch.testing.assert_close(logits(model, causal()), want, rtol=1e-9, atol=1e-9)


def test_moss_is_codegen():
    """MOSS says another `model_type` of the same graph and names; its vocabulary is larger."""
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
    moss, codegen = ({**sizes, "model_type": kind} for kind in ("moss", "codegen"))
    assert family_of(moss) is family_of(codegen)
    assert family_of(moss).spec(moss) == family_of(codegen).spec(codegen)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({**GLM, "vocab_size": 97, "max_sequence_length": 64, "position_encoding_2d": False}, "position_encoding_2d"),
        ({**GLM, "vocab_size": 97, "max_sequence_length": 64, "quantization_bit": 4}, "quantization_bit"),
        ({**LLAMA, "model_type": "baichuan", "max_position_embeddings": 64, "tie_word_embeddings": True}, "tie_word_embeddings"),
        ({**LLAMA, "model_type": "internlm", "max_position_embeddings": 64, "rotary": {"type": "longrope"}}, "longrope"),
    ],
)
def test_what_they_cannot_say_is_refused_by_name(config, key):
    with pytest.raises(UserError, match=key):
        family_of(config).spec(config)
