from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from llmfactory.config.toy import small_model
from llmfactory.core.context import CausalMask, Context, DocumentMask, Record, SegmentMask
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.inference.cache import KvCache
from llmfactory.model.attention import reference
from llmfactory.model.attention.spec import Cross, Gqa
from llmfactory.model.block.spec import PostNorm, PreNorm
from llmfactory.model.count import parameters
from llmfactory.model.declarations import declarations
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Glu, Mlp, Moe
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import LayerNorm, RmsNorm
from llmfactory.model.norm.spec import None_ as NoNorm
from llmfactory.model.position.spec import Learned, None_, Rope, T5Bias
from llmfactory.model.spec import EncoderDecoder, LayerSpec, TowerSpec
from llmfactory.model.steps import Pass


def tower(**changes):
    fields = {
        "n_layers": 2,
        "norm": RmsNorm(),
        "position": Rope(),
        "attention": Gqa(n_heads=4),
        "ffn": Mlp(hidden=40, activation=Activation.relu),
        "block": PreNorm(),
    }
    return TowerSpec(**{**fields, **changes})


def seq2seq(**changes):
    """A small encoder-decoder, whose two sides differ in everything that may differ."""
    fields = {
        "vocab_size": 97,
        "dim": 24,
        "max_positions": 32,
        "embedding": Token(),
        "encoder": tower(),
        "decoder": tower(
            n_layers=3, position=Learned(), cross=Cross(n_heads=2, bias=True), ffn=Mlp(hidden=36, activation=Activation.gelu)
        ),
        "head": Lm(tied=True),
    }
    return EncoderDecoder(**{**fields, **changes})


def t5():
    """With score biases, which know distances within a document."""
    own = {"position": T5Bias(n_buckets=8, max_distance=12), "attention": Gqa(n_heads=4, scale=1.0)}
    return seq2seq(encoder=tower(**own), decoder=tower(**own, cross=Cross(n_heads=4, scale=1.0)))


def ids(*shape, seed=7):
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


def counted(segments):
    """Positions that count from 0 in each document."""
    positions = torch.zeros_like(segments)
    for t in range(1, segments.shape[1]):
        positions[:, t] = torch.where(segments[:, t] == segments[:, t - 1], positions[:, t - 1] + 1, 0)
    return positions


def batch_of(tokens, source, segments=None, source_segments=None):
    segments = torch.ones_like(tokens) if segments is None else segments
    source_segments = torch.ones_like(source) if source_segments is None else source_segments
    return {
        "tokens": tokens,
        "positions": counted(segments),
        "segments": segments,
        "source": source,
        "source_positions": counted(source_segments),
        "source_segments": source_segments,
    }


def run(model, batch, isolated=True):
    return model(batch["tokens"], model.context(batch, isolated))


def attended(part, x, memory, mask, rotate=lambda q, k: (q, k)):
    """Attention by its plain equation."""
    q, k, v = (
        linear(y).view(*y.shape[:2], -1, part.head_dim).transpose(1, 2)
        for linear, y in ((part.q, x), (part.k, memory), (part.v, memory))
    )
    return part.o(reference.attend(*rotate(q, k), v, mask).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("isolated", [True, False])
def test_equals_the_parts_in_a_row(build, isolated):
    model = build(seq2seq(embedding_norm=True, shared_embedding=False))
    tokens, source = ids(2, 5), ids(2, 7)
    places, far = torch.arange(5).expand(2, 5), torch.arange(7).expand(2, 7)
    own, all_, theirs = CausalMask(5), SegmentMask(torch.ones(2, 7)), SegmentMask(torch.ones(2, 5), torch.ones(2, 7))

    encoder = model.encoder
    inner = encoder.position.prepare(Context(far, all_), torch.float64)
    memory = encoder.embedding_norm(model.embedding.weight[source])
    for block in encoder.blocks:
        normed = block.attention_norm(memory)
        memory = memory + attended(block.attention, normed, normed, all_, lambda q, k: encoder.position.rotate(q, k, inner))
        memory = memory + block.ffn(block.ffn_norm(memory), inner)
    memory = encoder.norm(memory)

    decoder = model.decoder
    x = decoder.embedding_norm(model.decoder_embedding.weight[tokens] + decoder.position.weight[places])
    for block in decoder.blocks:
        normed = block.attention_norm(x)
        x = x + attended(block.attention, normed, normed, own)
        x = x + attended(block.cross, block.cross_norm(x), memory, theirs)
        x = x + block.ffn(block.ffn_norm(x), inner)
    want = decoder.norm(x)
    torch.testing.assert_close(run(model, batch_of(tokens, source), isolated), want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.head(want), want @ model.decoder_embedding.weight.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", [seq2seq(), t5()], ids=["", "t5"])
def test_packed_documents_equal_one_pair_a_row(build, spec):
    """Document d of a decoder's row reads document d of the encoder's: hidden vectors and every gradient, with padding."""
    model = build(spec)
    lengths, source_lengths = (4, 6, 2), (5, 1, 7)
    pairs = [(ids(1, n, seed=n), ids(1, m, seed=10 + m)) for n, m in zip(lengths, source_lengths, strict=True)]
    alone = torch.cat([run(model, batch_of(*pair)) for pair in pairs], 1)
    weights = torch.randn(alone.shape, dtype=torch.float64)
    (alone * weights).sum().backward()
    want = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    pad = torch.zeros(1, 2, dtype=torch.long)
    segments = torch.tensor([[d + 1 for d, n in enumerate(lengths) for _ in range(n)] + [0, 0]])
    source_segments = torch.tensor([[0, 0] + [d + 1 for d, n in enumerate(source_lengths) for _ in range(n)]])
    tokens = torch.cat([*(pair[0] for pair in pairs), pad], 1)
    source = torch.cat([pad, *(pair[1] for pair in pairs)], 1)
    packed = run(model, batch_of(tokens, source, segments, source_segments))[:, :-2]
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)
    (packed * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name], rtol=1e-9, atol=1e-9, msg=name)


def test_padding_that_no_encoder_token_answers_leaves_gradients_finite(build):
    """Decoder padding beside an encoder's row without any: nothing to attend to."""
    model = build(seq2seq())
    segments = torch.tensor([[1, 1, 1, 0, 0]])
    hidden = run(model, batch_of(ids(1, 5), ids(1, 6), segments))
    hidden[:, :3].sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize(
    "spec",
    [seq2seq(), t5(), seq2seq(decoder=dataclasses.replace(seq2seq().decoder, block=PostNorm()))],
    ids=["", "t5", "post_norm"],
)
def test_step_by_step_equals_the_whole(build, spec):
    """The source comes with the first token only; its keys are computed once."""
    model = build(spec).eval()
    tokens, source = ids(2, 6), ids(2, 7)
    source_segments = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    batch = batch_of(tokens, source, source_segments=source_segments)
    want = run(model, batch)
    calls = []
    model.decoder.blocks[0].cross.k.register_forward_hook(lambda *_: calls.append(1))
    model.encoder.norm.register_forward_hook(lambda *_: calls.append(1))
    state, got = KvCache(6), []
    for t in range(6):
        seen = DocumentMask(torch.ones(2, 1), torch.ones(2, t + 1), torch.full((2, 1), t), torch.arange(t + 1).expand(2, t + 1))
        context = Context(torch.full((2, 1), t), seen, state=state, key_positions=torch.arange(t + 1).expand(2, t + 1))
        theirs = SegmentMask(torch.ones(2, 1), source_segments)
        if t == 0:
            context = context.with_(source=dataclasses.replace(model.context(batch).source, mask=theirs))
        got.append(model(tokens[:, t : t + 1], context.with_(memory_mask=theirs)))
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-10, atol=1e-10)
    assert len(calls) == 2


def test_the_source_is_asked_for(build):
    model = build(seq2seq())
    tokens = ids(1, 5)
    with pytest.raises(UserError, match="`source` in the batch"):
        model.context({"tokens": tokens, "positions": counted(tokens), "segments": torch.ones_like(tokens)})
    with pytest.raises(UserError, match="`source` in the batch"):
        model(tokens, Context(torch.arange(5)[None], CausalMask(5)))


SIDE = seq2seq().decoder
CHANGES = {
    "vocab_size": 98,
    "dim": 48,
    "max_positions": 33,
    "init_std": 0.03,
    "embedding": Token(scale=2.0),
    "encoder": tower(n_layers=3),
    "decoder": dataclasses.replace(SIDE, norm=LayerNorm()),
    "head": Lm(tied=True, bias=True),
    "shared_embedding": False,
    "embedding_norm": True,
    "embedding_std": 1.0,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_model(name):
    """Shapes, first weights or hidden vectors."""

    def numbers(spec):
        model = spec.build().eval()
        initialize(model, 0)
        weights = [(name, tuple(w.shape), w.double().abs().sum().item()) for name, w in model.named_parameters()]
        return [weights, model.head(run(model, batch_of(ids(1, 4), ids(1, 5)))).double().abs().sum().item()]

    assert numbers(seq2seq()) == numbers(seq2seq())
    assert numbers(seq2seq(**{name: CHANGES[name]})) != numbers(seq2seq())


def test_all_fields_are_tried():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(EncoderDecoder)}


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_dropout_of_a_side(side):
    """Of its embeddings, too: with all else taken out of the blocks, a share of the numbers is gone."""
    spec = seq2seq(**{side: dataclasses.replace(getattr(seq2seq(), side), dropout=0.5, norm=NoNorm())})
    model = spec.build()
    initialize(model, 0)
    batch = batch_of(ids(1, 4), ids(1, 5))
    assert torch.equal(run(model.eval(), batch), run(model, batch))
    assert not torch.equal(run(model.train(), batch), run(model, batch))
    read = ids(1, 9), Context(torch.arange(9)[None], CausalMask(9))
    going = Pass(*read)
    first, *_ = getattr(model, side).steps("x", lambda *_: torch.ones(1, 9, 24), lambda _: read)
    first.run(going)
    assert 0.3 < (going.carried["x"] == 0).float().mean() < 0.7


def test_parameters_are_declared_and_chained():
    spec = seq2seq(shared_embedding=False, embedding_norm=True, head=Lm(tied=False))
    model = spec.build()
    assert set(declarations(model)) == {name for name, _ in model.named_parameters()}
    names = [name for name, _ in model.chain()]
    assert names[:4] == ["embedding", "encoder.position", "encoder.embedding_norm", "encoder.blocks.0"]
    assert names[-3:] == ["decoder.blocks.2", "decoder.norm", "head"]
    assert all(model.get_submodule(name) is module for name, module in model.chain())
    assert sum(sum(p.numel() for p in module.parameters()) for _, module in model.chain()) == parameters(model)


def test_flops_count_each_matrix_and_each_pair_of_tokens():
    """By hand: 6 per matrix element and token; encoder and cross-attention see whole rows, the decoder half of its own."""
    model = seq2seq().build()
    encoder, decoder = 2 * (4 * 24 * 24 + 2 * 24 * 40), 3 * (8 * 24 * 24 + 2 * 24 * 36)
    pairs = 2 * 2 * 24 + 3 * 2 * 24 + 3 * 2 * 24 / 2
    assert model.train_flops_per_token(16) == 6 * (97 * 24 + encoder + decoder + pairs * 16)


def test_position_limit():
    assert seq2seq().build().position_limit == 32
    assert seq2seq(decoder=dataclasses.replace(SIDE, position=None_())).build().position_limit is None


def test_checks():
    with pytest.raises(ConfigError) as error:
        seq2seq(encoder=tower(attention=Gqa(n_heads=5), cross=Cross(n_heads=4)), decoder=tower(), embedding_std=0.0)
    assert {problem.path for problem in error.value.problems} == {
        "embedding_std",
        "encoder.attention.n_heads",
        "encoder.cross",
        "decoder.cross",
    }


def test_small_keeps_what_each_side_is():
    layers = {
        "others": {"gated": LayerSpec(ffn=Glu(hidden=400, activation=Activation.silu))},
        "pattern": ["base", "gated", "base"],
    }
    big = seq2seq(
        dim=96,
        encoder=tower(n_layers=9, **layers),
        decoder=tower(n_layers=6, attention=Gqa(n_heads=12, n_kv_heads=3), cross=Cross(n_heads=12)),
    )
    small = small_model(big)
    assert (small.encoder.n_layers, small.decoder.n_layers) == (3, 2)
    assert small.encoder.pattern == ["base", "gated", "base"]
    assert (small.decoder.attention.n_heads, small.decoder.attention.n_kv_heads) == (8, 2)
    assert small.decoder.cross.n_heads == 4
    assert small_model(small) == small
    small.build()


def test_terms_of_each_side_are_sums_over_its_own_tokens():
    """The balance of experts in the encoder is divided by the encoder's tokens."""
    experts = Moe(hidden=8, n_experts=3, k=1, activation=Activation.relu, gated=False, z=1.0)
    model = seq2seq(encoder=tower(ffn=experts), decoder=tower(ffn=experts, cross=Cross(n_heads=4))).build()
    segments, source_segments = torch.tensor([[1, 1, 1, 0]]), torch.tensor([[1, 1, 0, 0, 0]])
    batch = batch_of(ids(1, 4), ids(1, 5), segments, source_segments)
    assert model.term_tokens(batch) == {"encoder_router_z": 2.0, "decoder_router_z": 3.0}
    record = Record()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model(batch["tokens"], model.context(batch).with_(record=record))
    layers = model.spec.encoder.n_layers
    each = math.log(3) ** 2  # of logits that are all zero
    assert float(record.sums["encoder_router_z"].detach()) == pytest.approx(2 * layers * each)
    assert float(record.sums["decoder_router_z"].detach()) == pytest.approx(3 * layers * each)
