from __future__ import annotations

import copy

import pytest
import torch

from llmfactory.core.context import CausalMask, Context, DocumentMask
from llmfactory.model.attention import gqa, reference


def plain(rows):
    """Context of whole rows without padding."""
    count, length = rows.shape
    return Context(torch.arange(length).expand(count, length), CausalMask(length))


def packed(segments):
    """Context of packed rows: positions count from 0 in each document."""
    positions = torch.zeros_like(segments)
    for t in range(1, segments.shape[1]):
        positions[:, t] = torch.where(segments[:, t] == segments[:, t - 1], positions[:, t - 1] + 1, 0)
    return Context(positions, DocumentMask(segments))


def ids(*shape):
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(7))


def test_equals_the_parts_in_a_row(family, build):
    """Embedding, positions, blocks in order, final norm; attention by its plain equation."""
    model = build(family())
    tokens = ids(2, 9)
    context = plain(tokens)
    x = model.position.embed(model.embedding(tokens, context), context)
    context = model.position.prepare(context, x.dtype)
    for block in model.blocks:
        part = block.attention
        normed = block.attention_norm(x)
        q, k, v = (linear(normed).view(2, 9, -1, part.head_dim).transpose(1, 2) for linear in (part.q, part.k, part.v))
        q, k = model.position.rotate(q, k, context)
        x = x + part.o(reference.attend(q, k, v, context.mask).transpose(1, 2).reshape(2, 9, -1))
        x = x + block.ffn(block.ffn_norm(x), context)
    torch.testing.assert_close(model(tokens, plain(tokens)), model.norm(x), rtol=1e-10, atol=1e-10)


def test_causal(family, build):
    """A later token changes nothing before it."""
    model = build(family())
    tokens, changed = ids(1, 9), ids(1, 9)
    changed[0, 5] = (tokens[0, 5] + 1) % 97
    changed[0, :5] = tokens[0, :5]
    before, after = model(tokens, plain(tokens)), model(changed, plain(changed))
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, 5], after[:, 5])


def test_packed_documents_equal_one_document_a_row(family, build):
    """Hidden vectors and every gradient, float64 to 1e-10."""
    model = build(family())
    documents = [ids(4), ids(9), ids(1), ids(7)]
    weights = [torch.randn(len(document), 24, dtype=torch.float64) for document in documents]

    row = torch.cat(documents)[None]
    segments = torch.cat([torch.full((len(document),), number + 1) for number, document in enumerate(documents)])[None]
    together = model(row, packed(segments))
    (together * torch.cat(weights)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    model.zero_grad(set_to_none=True)

    alone = [model(document[None], plain(document[None])) for document in documents]
    sum((y * weight).sum() for y, weight in zip(alone, weights, strict=True)).backward()
    torch.testing.assert_close(together[0], torch.cat([y[0] for y in alone]), rtol=1e-10, atol=1e-10)
    for got, want in zip(gradients, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10 * float(want.abs().max()) + 1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side, family, build):
    model = build(family())
    documents = [ids(3), ids(8), ids(5)]
    tokens, segments = torch.full((3, 8), 11), torch.zeros(3, 8, dtype=torch.long)
    where = []
    for row, document in enumerate(documents):
        start = 8 - len(document) if side == "left" else 0
        where.append(slice(start, start + len(document)))
        tokens[row, where[row]], segments[row, where[row]] = document, 1
    hidden = model(tokens, packed(segments))
    assert hidden.isfinite().all()
    for row, document in enumerate(documents):
        alone = model(document[None], plain(document[None]))
        torch.testing.assert_close(hidden[row, where[row]], alone[0], rtol=1e-10, atol=1e-10)
    tokens[segments == 0] = 12  # and what stands in the padding does not matter
    torch.testing.assert_close(hidden[segments == 1], model(tokens, packed(segments))[segments == 1], rtol=0, atol=1e-12)


def test_the_dense_mask_of_a_plain_row_equals_the_fast_path(family, build):
    model = build(family())
    tokens = ids(2, 9)
    dense = Context(plain(tokens).positions, DocumentMask(torch.ones_like(tokens)))
    torch.testing.assert_close(model(tokens, dense), model(tokens, plain(tokens)), rtol=1e-10, atol=1e-10)


def test_positions_are_an_input(family, build):
    """Learned and rotary alike read the positions that they are given, not the column."""
    model = build(family())
    tokens = ids(1, 6)
    context = plain(tokens)
    spread = Context(context.positions * 3, context.mask)
    assert not torch.allclose(model(tokens, spread)[:, -1], model(tokens, context)[:, -1], atol=1e-3)


def test_dropout_after_the_embedding_and_only_in_training(family, build):
    model = build(family(dropout=0.5))
    tokens = ids(1, 6)
    without = build(family())(tokens, plain(tokens))
    model.eval()
    torch.testing.assert_close(model(tokens, plain(tokens)), without, rtol=0, atol=0)
    model.train()
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    model(tokens, plain(tokens))
    assert 0.2 < (seen[0] == 0).double().mean() < 0.8


def test_chain_names_the_modules_in_forward_order(family):
    model = family().build()
    names = [name for name, _ in model.chain()]
    assert names == ["embedding", "position", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]
    assert all(model.get_submodule(name) is module for name, module in model.chain())
    assert {id(p) for _, module in model.chain() for p in module.parameters()} == {id(p) for p in model.parameters()}


def test_runs_in_every_dtype(family, build):
    tokens = ids(2, 9)
    exact = build(family())(tokens, plain(tokens)).detach()
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.3)):
        hidden = build(family(), dtype)(tokens, plain(tokens))
        assert hidden.dtype == dtype
        torch.testing.assert_close(hidden.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


def test_autocast_keeps_the_residual_stream_in_float32(family, build):
    model = build(family(), torch.float32)
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
        block.attention.q.register_forward_hook(lambda module, arguments, output: seen.append(output.dtype))
    tokens = ids(2, 9)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(tokens, plain(tokens))
    assert seen == [torch.float32, torch.bfloat16] * 3
    assert hidden.dtype == torch.float32


@pytest.mark.parametrize("rows", ["plain", "packed"])
def test_compiles_without_a_break(rows, family, build):
    """One graph for the whole forward, with equal numbers and gradients (the graph is run eagerly here)."""
    model = build(family())
    tokens = ids(2, 9)
    results = []
    for run in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        context = plain(tokens) if rows == "plain" else packed(torch.tensor([[1, 1, 1, 2, 2, 2, 3, 0, 0]] * 2))
        hidden = run(tokens, context)
        results.append((hidden, *torch.autograd.grad(hidden.square().sum(), list(model.blocks.parameters()))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.detach().abs().max()))


def test_a_bias_set_by_a_position_part_reaches_the_scores(llama, build, monkeypatch):
    model = build(llama())
    bias = torch.randn(1, 6, 9, 9, dtype=torch.float64)
    monkeypatch.setattr(model.position, "prepare", lambda context, dtype: context.with_(bias=bias))
    monkeypatch.setattr(type(model.position), "rotate", lambda self, q, k, context: (q, k))
    for block in model.blocks:
        block.attention.rotate = model.position.rotate
    tokens = ids(2, 9)
    got = model(tokens, plain(tokens))
    monkeypatch.setattr(gqa, "attend", lambda *given, dropout, kernel, **options: reference.attend(*given, **options))
    torch.testing.assert_close(got, model(tokens, plain(tokens)), rtol=1e-10, atol=1e-10)


def test_a_copy_is_whole(family, build):
    """Its attention turns by its own position part, and training it leaves the original alone."""
    model = build(family())
    twin = copy.deepcopy(model)
    tokens = ids(2, 9)
    torch.testing.assert_close(twin(tokens, plain(tokens)), model(tokens, plain(tokens)), rtol=0, atol=0)
    assert all(block.attention.rotate.__self__ is twin.position for block in twin.blocks)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    twin.head(twin(tokens, plain(tokens))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
