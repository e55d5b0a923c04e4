"""Transformer-XL, which `transformers` no longer has, against the equations of Dai et al. 2019 (sections 3.2 and 3.3).

h_t^n of a segment is computed from the concatenation of the hidden states h^(n-1) of earlier segments and of its own:

    q = W_q h,  k = W_k [m; h],  v = W_v [m; h]
    A_ij = q_i k_j + q_i W_r R_(i-j) + u k_j + v W_r R_(i-j)
    o = LayerNorm(h + W_o softmax(A / sqrt(d)) v),   h' = LayerNorm(o + W_2 relu(W_1 o))

The embeddings are multiplied by the root of their width and serve as output matrix.
"""

from __future__ import annotations

import math

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.inference.cache import KvCache
from llmfactory.inference.decoding import columns
from llmfactory.model.initialize import initialize

LENGTH = 12


@pytest.fixture
def model():
    """The preset in small, with every term off its neutral value; two heads, a memory of 5 tokens, distances up to 4."""
    sizes = ["dim=12", "n_layers=2", "vocab_size=300", "max_positions=64", "attention.n_heads=2", "attention.memory=5"]
    sizes += ["position.clamp=4", "ffn.hidden=20"]
    job = compose_job(["model=transfo_xl_wt103", "data.seq_len=32", *(f"model.{size}" for size in sizes)]).job
    built = job.model.build().double().eval()
    initialize(built, 0)
    with torch.no_grad():
        for number, parameter in enumerate(built.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return built


def layer_norm(x, norm):
    return (x - x.mean()) / ((x - x.mean()) ** 2).mean().add(1e-5).sqrt() * norm.weight + norm.bias


def reference(model, tokens, memory, segments):
    """Logits [T, V] of one text read in segments, token by token; `memory`: hidden states kept of each layer's input."""
    dim = model.spec.dim
    kept = [[] for _ in model.blocks]
    logits = []
    for start, end in segments:
        hidden = [model.embedding.weight[token] * dim**0.5 for token in tokens[start:end]]
        for layer, block in enumerate(model.blocks):
            part, before = block.attention, kept[layer][-memory:] if memory else []
            everything = before + hidden
            kept[layer] = kept[layer] + hidden
            after = []
            for t, h in enumerate(hidden):
                here, heads = len(before) + t, []
                for head in range(model.spec.attention.n_heads):
                    cut = slice(head * part.head_dim, (head + 1) * part.head_dim)
                    q, u, v = part.q.weight[cut] @ h, part.content_bias[head], part.distance_bias[head]
                    scores, values = [], []
                    for j in range(here + 1):
                        far = min(here - j, model.spec.position.clamp)
                        angle = far / 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
                        key = part.k.weight[cut] @ everything[j]
                        distance = part.r.weight[cut] @ torch.cat((angle.sin(), angle.cos()))
                        scores.append((q @ key + q @ distance + u @ key + v @ distance) / math.sqrt(part.head_dim))
                        values.append(part.v.weight[cut] @ everything[j])
                    heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
                o = layer_norm(h + part.o.weight @ torch.cat(heads), block.attention_norm)
                inner = (block.ffn.up.weight @ o + block.ffn.up.bias).relu()
                after.append(layer_norm(o + block.ffn.down.weight @ inner + block.ffn.down.bias, block.ffn_norm))
            hidden = after
        logits += [model.embedding.weight @ h + model.head.bias for h in hidden]
    return torch.stack(logits)


@pytest.mark.parametrize("segments", [[(0, 8)], [(0, 4), (4, 8), (8, 12)], [(0, 7), (7, 8), (8, 12)]])
def test_segments_with_memory(model, segments):
    tokens = torch.randint(0, 300, (1, LENGTH), generator=torch.Generator().manual_seed(3))
    state, got = KvCache(LENGTH), []
    with torch.no_grad():
        for start, end in segments:
            context = columns([0], start, end, tokens.device).with_(state=state)
            got.append(model.head(model(tokens[:, start:end], context))[0])
        want = reference(model, tokens[0].tolist(), 5, segments)
    torch.testing.assert_close(torch.cat(got), want, rtol=0, atol=1e-9 * float(want.abs().max()))


def test_the_published_size():
    """18 layers of the paper's large model; without the adaptive embedding all words have vectors of the full width."""
    with torch.device("meta"):
        built = compose_job(["model=transfo_xl_wt103", "data.seq_len=384"]).job.model.build()
    dim, hidden = 1024, 4096
    attention = 5 * dim * dim + 2 * dim
    ffn = 2 * dim * hidden + hidden + dim
    layer = attention + ffn + 2 * 2 * dim
    words = 267_735
    assert sum(weight.numel() for weight in built.parameters()) == 18 * layer + words * dim + words
