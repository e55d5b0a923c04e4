"""Against XLNetRelativeAttention of the reference library, with equal weights."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import Context, FullMask, PermutationMask, StreamsMask
from llmfactory.core.sharding import Layout
from llmfactory.inference.cache import KvCache
from llmfactory.model.attention.spec import TwoStream
from llmfactory.model.position.spec import Relative as RelativePosition

DIM, HEADS, WIDTH, LENGTH = 12, 3, 4, 7
SEGMENTS = torch.ones(2, LENGTH, dtype=torch.long)
PLACES = torch.tensor([[0, 0, 3, 1, 0, 2, 0], [2, 1, 0, 0, 0, 4, 3]])
TYPES = torch.tensor([[0, 0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 2, 2]])


@pytest.fixture
def part(site):
    def make(**changes):
        here = site(position=RelativePosition(), dim=DIM, n_heads=HEADS, head_dim=WIDTH, causal=False)
        built = TwoStream(n_heads=HEADS, **changes).build(here).double().eval()
        for number, parameter in enumerate(built.parameters()):
            parameter.data.normal_(generator=torch.Generator().manual_seed(number))
        return built, here.position

    return make


@pytest.fixture
def theirs(part):
    from transformers import XLNetConfig
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    ours = part()[0]
    made = XLNetRelativeAttention(XLNetConfig(d_model=DIM, n_head=HEADS, d_inner=8, n_layer=1)).double().eval()
    with torch.no_grad():
        for name in "qkvr":
            getattr(made, name).copy_(getattr(ours, name).weight.T.view(DIM, HEADS, WIDTH))
        made.o.copy_(ours.o.weight.view(DIM, HEADS, WIDTH))
        made.r_w_bias.copy_(ours.content_bias)
        made.r_r_bias.copy_(ours.distance_bias)
        made.r_s_bias.copy_(ours.segment_bias)
        made.seg_embed.copy_(torch.stack((ours.same_segment, ours.other_segment)))
    made.layer_norm = torch.nn.Identity()  # theirs adds the residual and normalizes: the block's work here
    return made


def rows(seed):
    return torch.randn(2, LENGTH, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hidden_from(mask):
    """Theirs: [T, S, B, 1], 1 where not seen."""
    return (~mask.dense())[:, 0].permute(1, 2, 0)[..., None].double()


@pytest.mark.parametrize("types", [None, TYPES], ids=["", "types"])
def test_both_streams(part, theirs, types):
    from transformers import XLNetConfig, XLNetModel

    attention, position = part()
    content, query = rows(0), rows(1)
    masks = [PermutationMask(PLACES, SEGMENTS, strict=strict) for strict in (False, True)]
    context = position.prepare(Context(torch.arange(LENGTH).expand(2, LENGTH), masks[0], types=types), torch.float64)
    both = attention(torch.cat((content, query), 1), context.with_(mask=StreamsMask(*masks, LENGTH)))
    of_content, of_query = both.chunk(2, 1)
    torch.testing.assert_close(attention(content, context), of_content, rtol=1e-12, atol=1e-12)
    kinds = None
    if types is not None:
        kinds = torch.nn.functional.one_hot((types[:, :, None] != types[:, None, :]).long(), 2).permute(1, 2, 0, 3).double()
    library = XLNetModel(XLNetConfig(d_model=DIM, n_head=HEADS, d_inner=8, n_layer=1, vocab_size=5))
    waves = library.relative_positional_encoding(LENGTH, LENGTH, 2).double()
    with torch.no_grad():
        want = theirs(content.transpose(0, 1), query.transpose(0, 1), hidden_from(masks[0]), hidden_from(masks[1]), waves, kinds)
    sees = masks[1].dense()[:, 0].any(-1)  # theirs gives a mean to who sees nothing
    for got, wanted, own, rows_ in ((of_content, want[0], content, SEGMENTS.bool()), (of_query, want[1], query, sees)):
        torch.testing.assert_close(got[rows_], (wanted.transpose(0, 1) - own)[rows_], rtol=1e-5, atol=1e-5)  # float32 waves


def test_the_query_stream_never_sees_its_own_token(part):
    """Nor anything that comes later in the order: their content changes nothing."""
    attention, position = part()
    content, query = rows(0), rows(1)
    mask = StreamsMask(*(PermutationMask(PLACES, SEGMENTS, strict=strict) for strict in (False, True)), LENGTH)
    context = position.prepare(Context(torch.arange(LENGTH).expand(2, LENGTH), mask), torch.float64)
    before = attention(torch.cat((content, query), 1), context)[:, LENGTH:]
    changed = content.clone()
    changed[0, 5] += 1.0  # place 2 of the first row
    after = attention(torch.cat((changed, query), 1), context)[:, LENGTH:]
    moved = (before - after).abs().amax(-1)[0] > 1e-9
    assert moved.tolist() == [place > 2 for place in PLACES[0].tolist()]


def test_kinds_of_text_stay_in_the_state(part):
    attention, position = part()
    x, state, places = rows(0), KvCache(LENGTH), torch.arange(LENGTH).expand(2, LENGTH)
    last = position.prepare(Context(places, FullMask(LENGTH), types=TYPES), torch.float64)
    want = attention(x, last)[:, 5:]
    for start, end in ((0, 5), (5, 7)):
        context = Context(places[:, start:end], FullMask(), types=TYPES[:, start:end], key_positions=places[:, :end], state=state)
        got = attention(x[:, start:end], position.prepare(context, torch.float64))
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_dropout_in_training_only(part):
    (attention, position), x = part(dropout=0.5), rows(0)
    context = position.prepare(Context(torch.arange(LENGTH)[None], FullMask(LENGTH)), torch.float64)
    torch.testing.assert_close(attention(x, context), part()[0](x, context))
    assert not torch.equal(attention.train()(x, context), attention(x, context))


def test_declarations(part):
    attention, _ = part(head_dim=6)
    declared = attention.declare()
    assert attention.q.weight.shape == (18, DIM)
    assert {name for name, entry in declared.items() if entry.layout is Layout.row} == {"o.weight"}
    assert {name for name, entry in declared.items() if entry.decay} == {f"{name}.weight" for name in "qkvor"}
    assert set(declared) == {name for name, _ in attention.named_parameters()}
