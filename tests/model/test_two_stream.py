from __future__ import annotations

import dataclasses

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.config.toy import small_model
from llmfactory.core.context import Record
from llmfactory.core.errors import ConfigError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.attention.spec import TwoStream as TwoStreamAttention
from llmfactory.model.block.spec import PostNorm, PreNorm
from llmfactory.model.count import parameters
from llmfactory.model.declarations import declarations
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Mlp, Moe
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import LayerNorm, RmsNorm
from llmfactory.model.position.spec import Relative
from llmfactory.model.spec import LayerSpec, TwoStream


def xlnet(**changes):
    """XLNet in small."""
    fields = {
        "vocab_size": 97,
        "dim": 24,
        "max_positions": 32,
        "n_layers": 2,
        "norm": LayerNorm(),
        "position": Relative(),
        "attention": TwoStreamAttention(n_heads=4),
        "ffn": Mlp(hidden=40, activation=Activation.gelu),
        "block": PostNorm(),
        "embedding": Token(),
        "head": Lm(tied=True, bias=True),
    }
    return TwoStream(**{**fields, **changes})


def ids(*shape, seed=7):
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


def batch_of(tokens, segments=None, **more):
    segments = torch.ones_like(tokens) if segments is None else segments
    positions = torch.zeros_like(tokens)
    for t in range(1, tokens.shape[1]):
        positions[:, t] = torch.where(segments[:, t] == segments[:, t - 1], positions[:, t - 1] + 1, 0)
    return {"tokens": tokens, "segments": segments, "positions": positions, **more}


def run(model, batch, isolated=True):
    return model(batch["tokens"], model.context(batch, isolated))


ORDER = torch.tensor([[0, 3, 0, 1, 2, 0]])


@pytest.mark.parametrize("block", [PostNorm(), PreNorm()])
def test_each_token_is_predicted_from_those_before_it_in_the_order(build, block):
    """For each predicted token alone: a row that holds nothing but what it may know, and a query vector at its own place.

    The content of what is given is the same in every such row, for the given tokens see each other only; a predicted token's
    content comes in with its turn.
    """
    model = build(xlnet(block=block))
    tokens = ids(1, 6)
    got = run(model, batch_of(tokens, order=ORDER))
    for place in ORDER[0].nonzero().flatten().tolist():
        changed = tokens.clone()
        hidden = (ORDER[0] >= ORDER[0, place]).nonzero().flatten()
        changed[0, hidden] = (tokens[0, hidden] + 5) % 97
        again = run(model, batch_of(changed, order=ORDER))
        torch.testing.assert_close(again[0, place], got[0, place], rtol=0, atol=1e-12)
        for known in (ORDER[0] < ORDER[0, place]).nonzero().flatten().tolist():
            changed = tokens.clone()
            changed[0, known] = (tokens[0, known] + 5) % 97
            assert not torch.allclose(run(model, batch_of(changed, order=ORDER))[0, place], got[0, place], atol=1e-6)


def test_the_last_in_the_order_sees_what_the_content_stream_would(build):
    """Everything but itself: the content stream of a whole row, with the query vector instead of its embedding, in one layer."""
    model = build(xlnet(n_layers=1))
    tokens, order = ids(1, 6), torch.tensor([[0, 0, 0, 1, 0, 0]])
    got = run(model, batch_of(tokens, order=order))[0, 3]
    context = model.position.prepare(model.context(batch_of(tokens)), torch.float64)
    x = model.embedding(tokens, context)
    attention, block = model.blocks[0].attention, model.blocks[0]
    g = model.query
    heads = [slice(4 * 6 // 4 * h, 4 * 6 // 4 * (h + 1)) for h in range(4)]
    mixed = []
    for h, columns in enumerate(heads):
        q = (attention.q.weight @ g)[columns]
        scores = []
        for s in (0, 1, 2, 4, 5):
            k = (attention.k.weight @ x[0, s])[columns]
            wave = context.relative[5 - (3 - s)]  # distances 5 ... -5
            r = (attention.r.weight @ wave)[columns]
            scores.append(((q + attention.content_bias[h]) @ k + (q + attention.distance_bias[h]) @ r) / 6**0.5)
        values = torch.stack([(attention.v.weight @ x[0, s])[columns] for s in (0, 1, 2, 4, 5)])
        mixed.append(torch.stack(scores).softmax(0) @ values)
    x_new = block.attention_norm(g + attention.o.weight @ torch.cat(mixed))
    want = block.ffn_norm(x_new + block.ffn(x_new, context))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ordered", [True, False])
def test_packed_documents_equal_one_document_a_row(build, ordered):
    """Hidden vectors and every gradient, with kinds of text and padding."""
    model = build(xlnet())
    rows = []
    for number, length in enumerate((5, 7, 3)):
        more = {"types": ids(1, length, seed=20 + number) % 2}
        if ordered:
            more["order"] = ids(1, length, seed=30 + number) % 3
        rows.append(batch_of(ids(1, length, seed=number), **more))
    alone = torch.cat([run(model, row) for row in rows], 1)
    weights = torch.randn(alone.shape, dtype=torch.float64)
    (alone * weights).sum().backward()
    want = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)

    def packed(name):
        return torch.cat([*(row[name] for row in rows), torch.zeros(1, 2, dtype=torch.long)], 1)

    segments = torch.tensor([[1] * 5 + [2] * 7 + [3] * 3 + [0] * 2])
    more = {name: packed(name) for name in ("types", "order") if name in rows[0]}
    together = run(model, batch_of(packed("tokens"), segments, **more))[:, :-2]
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    (together * weights).sum().backward()
    for name, gradient in want.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-8, atol=1e-8, msg=name)


def test_rows_that_are_one_text_need_no_segments(build):
    model = build(xlnet())
    for more in ({}, {"order": ORDER}):
        batch = batch_of(ids(1, 6), **more)
        torch.testing.assert_close(run(model, batch, isolated=False), run(model, batch), rtol=1e-12, atol=1e-12)


CHANGES = {
    "vocab_size": 98,
    "dim": 48,
    "init_std": 0.03,
    "n_layers": 3,
    "norm": RmsNorm(),
    "position": Relative(clamp=2),
    "attention": TwoStreamAttention(n_heads=2),
    "ffn": Mlp(hidden=20, activation=Activation.gelu),
    "block": PreNorm(),
    "embedding": Token(scale=2.0),
    "head": Lm(tied=False, bias=True),
    "embedding_norm": True,
    "depth_scaled_init": False,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_model(name):
    """Shapes, first weights or hidden vectors."""

    def numbers(spec):
        model = spec.build().eval()
        initialize(model, 0)
        weights = [(name, tuple(w.shape), w.double().abs().sum().item()) for name, w in model.named_parameters()]
        return [weights, model.head(run(model, batch_of(ids(1, 6), order=ORDER))).double().abs().sum().item()]

    assert numbers(xlnet()) == numbers(xlnet())
    assert numbers(xlnet(**{name: CHANGES[name]})) != numbers(xlnet())


def test_kinds_of_layers_and_dropout():
    narrow = LayerSpec(ffn=Mlp(hidden=10, activation=Activation.gelu))
    model = xlnet(others={"narrow": narrow}, pattern=["base", "narrow"], dropout=0.5).build()
    assert [block.ffn.up.out_features for block in model.blocks] == [40, 10]
    initialize(model, 0)
    batch = batch_of(ids(1, 6), order=ORDER)
    assert not torch.equal(run(model, batch), run(model, batch))


def test_parameters_are_declared_and_chained():
    model = xlnet().build()
    assert set(declarations(model)) == {name for name, _ in model.named_parameters()}
    chained = sum(sum(p.numel() for p in module.parameters()) for _, module in model.chain())
    assert chained + model.query.numel() == parameters(model)


def test_flops_count_both_streams():
    """By hand: 6 per matrix element and token; the query stream has no keys and values of its own."""
    attention, ffn = 4 * 24 * 24, 2 * 24 * 40
    content, query = 2 * (attention + ffn), 2 * (attention // 2 + ffn)
    pairs = 2 * 3 * 24 * 16
    assert xlnet().build().train_flops_per_token(16) == 6 * (97 * 24 + content + query + 2 * pairs)


def test_attention_that_would_see_its_own_token_is_refused():
    with pytest.raises(ConfigError) as error:
        xlnet(attention=Gqa(n_heads=4))
    problem = next(problem for problem in error.value.problems if "predict" in problem.reason)
    assert (problem.path, problem.repair) == ("attention", "model/attention@attention=two_stream")


def test_small():
    small = small_model(xlnet(dim=96, n_layers=9, attention=TwoStreamAttention(n_heads=12), max_positions=500))
    assert (small.n_layers, small.attention.n_heads, small.max_positions) == (2, 4, 64)
    assert small_model(small) == small
    assert dataclasses.replace(small).build().query.shape == (small.dim,)


def test_rows_longer_than_it_is_made_for():
    line = ["model=xlnet_base", "stage=describe", "data.seq_len=300", "model.max_positions=256"]
    with pytest.raises(ConfigError, match="rows_fit_the_model"):
        compose_job(line)
    compose_job([*line[:-1], "model.max_positions=300"])


@pytest.mark.parametrize("ordered", [True, False])
def test_terms_of_parts_count_the_tokens_of_both_streams(build, ordered):
    """Where all tokens choose one expert and its share is 1 / E, the balance of each is 1; padding takes no part."""
    experts = Moe(hidden=8, n_experts=4, k=1, activation=Activation.gelu, gated=True, balance=1.0)
    model, record = build(xlnet(ffn=experts, n_layers=1)), Record()
    model.get_parameter("blocks.0.ffn.router.weight").data.zero_()
    batch = batch_of(ids(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2]))
    if ordered:
        batch["order"] = ORDER.repeat(2, 1)
    model(batch["tokens"], model.context(batch).with_(record=record))
    assert record.sums["balance"].item() / model.term_tokens(batch)["balance"] == pytest.approx(1.0)
