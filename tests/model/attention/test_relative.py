"""Against Dai et al. 2019 (Transformer-XL), section 3.3 and the algorithm of its appendix B, written out token by token."""

from __future__ import annotations

import math

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, DocumentMask, FullMask
from llmfactory.core.sharding import Layout
from llmfactory.inference.cache import KvCache
from llmfactory.inference.decoding import columns
from llmfactory.model.attention.relative import by_distance, by_place
from llmfactory.model.attention.spec import Relative
from llmfactory.model.position.spec import Relative as RelativePosition

DIM, HEADS = 12, 3


@pytest.fixture
def part(site):
    """The attention of one block, and the stack's position part."""

    def make(causal=True, clamp=None, layer=0, **changes):
        here = site(
            layer=layer,
            position=RelativePosition(clamp=clamp),
            dim=DIM,
            n_heads=HEADS,
            head_dim=4,
            max_positions=32,
            causal=causal,
        )
        built = Relative(n_heads=HEADS, **changes).build(here).double().eval()
        for number, parameter in enumerate(built.parameters()):
            parameter.data.normal_(generator=torch.Generator().manual_seed(number))
        return built, here.position

    return make


def rows(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shape[1]))


def run(parts, x, context):
    attention, position = parts
    return attention(x, position.prepare(context, x.dtype))


def wave(distance):
    angles = [distance / 10000 ** (2 * i / DIM) for i in range(DIM // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def equation(attention, x, seen, earlier=None, clamp=10**9):
    """A_ij = (q_i + u)k_j + (q_i + v) W_r R_(i-j); the memory's hidden states stand before those of the segment."""
    hidden = x if earlier is None else torch.cat((earlier, x), 1)
    width = attention.head_dim
    out = torch.zeros(*x.shape[:2], HEADS * width, dtype=torch.float64)
    for b in range(x.shape[0]):
        for h in range(HEADS):
            cut = slice(h * width, (h + 1) * width)
            u, v = attention.content_bias[h], attention.distance_bias[h]
            for t in range(x.shape[1]):
                i = hidden.shape[1] - x.shape[1] + t
                q = attention.q.weight[cut] @ x[b, t]
                scores = []
                for j in range(hidden.shape[1]):
                    far = max(-clamp, min(clamp, i - j))
                    content = (q + u) @ (attention.k.weight[cut] @ hidden[b, j])
                    distance = (q + v) @ (attention.r.weight[cut] @ wave(far))
                    scores.append((content + distance) / width**0.5 if seen(b, i, j) else torch.tensor(-torch.inf).double())
                values = hidden[b] @ attention.v.weight[cut].T
                out[b, t, cut] = torch.stack(scores).softmax(0) @ values
    return out @ attention.o.weight.T


@pytest.mark.parametrize("clamp", [None, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_equation(part, causal, clamp):
    parts, x = part(causal, clamp), rows(2, 6, DIM)
    context = Context(torch.arange(6).expand(2, 6), CausalMask(6) if causal else FullMask(6))
    want = equation(parts[0], x, lambda b, i, j: j <= i or not causal, clamp=clamp or 10**9)
    torch.testing.assert_close(run(parts, x, context), want, rtol=1e-10, atol=1e-10)


def test_documents_of_a_row_keep_apart(part):
    """Each gives what it gives alone."""
    parts, x = part(), rows(1, 7, DIM)
    segments, positions = torch.tensor([[1, 1, 1, 2, 2, 2, 2]]), torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    got = run(parts, x, Context(positions, DocumentMask(segments), segments=segments))
    for cut in (slice(0, 3), slice(3, 7)):
        alone = x[:, cut]
        length = alone.shape[1]
        want = run(parts, alone, Context(torch.arange(length)[None], CausalMask(length)))
        torch.testing.assert_close(got[:, cut], want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("memory", [0, 2, 5, None])
def test_segments_see_the_memory_of_those_before(part, memory):
    """Three segments through a state, against hidden states kept from the segments before (equations of section 3.2)."""
    parts, x, state, start = part(memory=memory), rows(2, 9, DIM), KvCache(9), 0
    for length in (4, 1, 4):
        end = start + length
        first = 0 if memory is None else max(0, start - memory)
        got = run(parts, x[:, start:end], columns([0, 0], start, end, x.device).with_(state=state))
        want = equation(parts[0], x[:, start:end], lambda b, i, j: j <= i, x[:, first:start])
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        start = end


def test_steps_of_padded_rows_equal_the_whole(part):
    parts, x, state = part(), rows(2, 6, DIM), KvCache(6)
    whole = run(parts, x, columns([0, 3], 0, 6, x.device))
    pieces = [
        run(parts, x[:, start:end], columns([0, 3], start, end, x.device).with_(state=state))
        for start, end in ((0, 4), (4, 5), (5, 6))
    ]
    torch.testing.assert_close(torch.cat(pieces, 1)[0], whole[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.cat(pieces, 1)[1, 3:], whole[1, 3:], rtol=1e-11, atol=1e-11)


def test_heads_of_their_own_width(part):
    parts, x = part(head_dim=2), rows(2, 5, DIM)
    context = Context(torch.arange(5).expand(2, 5), CausalMask(5))
    want = equation(parts[0], x, lambda b, i, j: j <= i)
    torch.testing.assert_close(run(parts, x, context), want, rtol=1e-10, atol=1e-10)


def test_dropout_in_training_only(part):
    parts, x = part(dropout=0.5), rows(2, 6, DIM)
    context = Context(torch.arange(6)[None], CausalMask(6))
    torch.testing.assert_close(run(parts, x, context), run(part(), x, context))
    parts[0].train()
    assert not torch.equal(run(parts, x, context), run(parts, x, context))


def test_declarations(part):
    attention, _ = part()
    declared = attention.declare()
    assert {name for name, entry in declared.items() if entry.layout is Layout.row} == {"o.weight"}
    assert all(entry.layout is Layout.column for name, entry in declared.items() if name != "o.weight")
    assert {name for name, entry in declared.items() if not entry.decay} == {"content_bias", "distance_bias"}
    assert declared["o.weight"].start.std == 0.005
    assert set(declared) == {name for name, _ in attention.named_parameters()}


def test_it_trains_inside_a_compiled_decoder(llama, build):
    """One graph, equal numbers and gradients (run eagerly here)."""
    torch.compiler.reset()  # models of other tests count as recompilations of the same code
    model = build(llama(attention=Relative(n_heads=4), position=RelativePosition()))
    tokens = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    for forward in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        hidden = forward(tokens, Context(torch.arange(9).expand(2, 9), CausalMask(9)))
        results.append((hidden, *torch.autograd.grad(hidden.square().sum(), list(model.blocks.parameters()))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.detach().abs().max()))


@pytest.mark.parametrize("distances", [6, 11])
def test_queries_at_any_places(distances: int) -> None:
    """Of a row of six, without and with distances of keys behind the query."""
    scores_BHTL = torch.randn(2, HEADS, 6, distances, generator=torch.Generator().manual_seed(0))
    whole = by_distance(scores_BHTL, 6)
    places = torch.tensor([4, 0, 5])
    assert torch.equal(by_place(scores_BHTL[:, :, places], places[None], torch.arange(6)[None]), whole[:, :, places])
