from __future__ import annotations

import pytest
import torch

from llmfactory.core.context import Context, FullMask, SegmentMask
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PostNorm
from llmfactory.model.count import parameters
from llmfactory.model.declarations import declarations
from llmfactory.model.embedding.spec import TokenSegment
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Lm, Mlm, Pooler
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned, Rope
from llmfactory.model.spec import EncoderOnly, LayerSpec


def bert_spec(**changes):
    fields = {
        "vocab_size": 97,
        "dim": 24,
        "max_positions": 48,
        "n_layers": 4,
        "norm": LayerNorm(),
        "position": Learned(),
        "attention": Gqa(n_heads=4, bias=True),
        "ffn": Mlp(hidden=96, activation=Activation.gelu),
        "block": PostNorm(),
        "embedding": TokenSegment(n_types=2),
        "embedding_norm": True,
        "head": Mlm(tied=True, activation=Activation.gelu),
    }
    return EncoderOnly(**{**fields, **changes})


def albert_spec(**changes):
    narrow = {"embedding_dim": 8, "unique_layers": 2, "head": Mlm(tied=True, activation=Activation.gelu, width=8)}
    return bert_spec(**{**narrow, **changes})


SPECS = pytest.mark.parametrize("spec", [bert_spec, albert_spec], ids=["bert", "albert"])


def ids(*shape):
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(7))


def batch_of(segments, tokens, types=None):
    """Positions count from 0 in each document."""
    positions = torch.zeros_like(segments)
    for t in range(1, segments.shape[1]):
        positions[:, t] = torch.where(segments[:, t] == segments[:, t - 1], positions[:, t - 1] + 1, 0)
    batch = {"tokens": tokens, "segments": segments, "positions": positions}
    return batch if types is None else {**batch, "types": types}


def alone(model, tokens, types=None):
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    return model(tokens, Context(positions, FullMask(), types=types))


@SPECS
def test_equals_the_parts_in_a_row(spec, build):
    """Token + kind + position, norm, map to the width, blocks (each as often as it is shared), no norm at the end."""
    model = build(spec())
    tokens, types = ids(2, 9), torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
    positions = torch.arange(9).expand(2, 9)
    x = model.embedding.weight[tokens] + model.embedding.types[types] + model.position.weight[positions]
    x = model.embedding_norm(x)
    shared = spec().repeats()
    if model.project is not None:
        x = x @ model.project.weight.T + model.project.bias
    for layer in range(4):
        block = model.blocks[layer // shared]
        part = block.attention
        q, k, v = (linear(x).view(2, 9, 4, 6).transpose(1, 2) for linear in (part.q, part.k, part.v))
        scores = (q @ k.transpose(-1, -2) / 6**0.5).softmax(-1)
        x = block.attention_norm(x + part.o((scores @ v).transpose(1, 2).reshape(2, 9, 24)))
        x = block.ffn_norm(x + block.ffn.down(torch.nn.functional.gelu(block.ffn.up(x))))
    torch.testing.assert_close(alone(model, tokens, types), x, rtol=1e-10, atol=1e-10)


@SPECS
def test_every_token_sees_its_whole_document(spec, build):
    """Before and behind it, in the context that the model makes of a batch."""
    model, tokens = build(spec()), ids(1, 9)
    batch = batch_of(torch.ones(1, 9, dtype=torch.long), tokens)
    before = model(tokens, model.context(batch))
    for t in (0, 8):
        changed = tokens.clone()
        changed[0, t] = (tokens[0, t] + 1) % 97
        after = model(changed, model.context(batch_of(batch["segments"], changed)))
        assert ((after - before).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("isolated", [True, False])
def test_context(isolated):
    model = bert_spec().build()
    batch = batch_of(torch.tensor([[1, 1, 2, 0]]), ids(1, 4), torch.tensor([[0, 1, 0, 0]]))
    context = model.context(batch, isolated)
    assert context.types is batch["types"]
    assert context.positions is batch["positions"]
    assert type(context.mask) is (SegmentMask if isolated else FullMask)
    assert (context.segments is None) is not isolated
    assert model.context({name: field for name, field in batch.items() if name != "types"}, isolated).types is None


@SPECS
def test_packed_documents_equal_one_document_a_row(spec, build):
    """Hidden vectors and every gradient, float64 to 1e-10."""
    model = build(spec())
    documents = [ids(4), ids(9), ids(1), ids(7)]
    kinds = [torch.arange(len(document)) // 2 % 2 for document in documents]
    weights = [torch.randn(len(document), 24, dtype=torch.float64) for document in documents]
    segments = torch.cat([torch.full((len(document),), number + 1) for number, document in enumerate(documents)])[None]
    row = torch.cat(documents)[None]
    together = model(row, model.context(batch_of(segments, row, torch.cat(kinds)[None])))
    (together * torch.cat(weights)).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    singly = [alone(model, document[None], kind[None]) for document, kind in zip(documents, kinds, strict=True)]
    sum((y * weight).sum() for y, weight in zip(singly, weights, strict=True)).backward()
    torch.testing.assert_close(together[0], torch.cat([y[0] for y in singly]), rtol=1e-10, atol=1e-10)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12 * largest)


@SPECS
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(spec, side, build):
    model = build(spec())
    documents = [ids(3), ids(8), ids(5)]
    tokens, segments = torch.full((3, 8), 11), torch.zeros(3, 8, dtype=torch.long)
    for row, document in enumerate(documents):
        start = 8 - len(document) if side == "left" else 0
        tokens[row, start : start + len(document)], segments[row, start : start + len(document)] = document, 1
    hidden = model(tokens, model.context(batch_of(segments, tokens)))
    assert hidden.isfinite().all()
    for row, document in enumerate(documents):
        torch.testing.assert_close(hidden[row, segments[row] == 1], alone(model, document[None])[0], rtol=1e-10, atol=1e-10)
    tokens[segments == 0] = 12
    changed = model(tokens, model.context(batch_of(segments, tokens)))
    torch.testing.assert_close(hidden[segments == 1], changed[segments == 1], rtol=0, atol=1e-12)


def test_shared_blocks_are_there_once(build):
    """Two blocks for four layers, each used twice in a row; counted once, computed twice."""
    shared, whole = bert_spec(unique_layers=2).build(), bert_spec().build()
    block = parameters(whole.blocks[0])
    assert parameters(whole) - parameters(shared) == 2 * block
    assert len(declarations(shared)) == len(dict(shared.named_parameters()))
    assert shared.train_flops_per_token(16) == whole.train_flops_per_token(16)
    assert [name for name, _ in shared.chain() if "blocks" in name] == ["blocks.0", "blocks.0", "blocks.1", "blocks.1"]
    model, tokens = build(bert_spec(unique_layers=1)), ids(1, 5)
    alone(model, tokens).sum().backward()
    seen = []
    model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    alone(model, tokens)
    assert len(seen) == 4


def test_chain_names_the_modules_in_forward_order():
    model = albert_spec().build()
    names = [name for name, _ in model.chain()]
    assert names[:4] == ["embedding", "position", "embedding_norm", "project"]
    assert names[-2:] == ["norm", "head"]
    assert all(model.get_submodule(name) is module for name, module in model.chain())
    assert {id(p) for _, module in model.chain() for p in module.parameters()} == {id(p) for p in model.parameters()}


def test_flops_count_every_pair_of_tokens():
    """A decoder's token sees half of its row, an encoder's all of it."""
    model = bert_spec(head=Pooler()).build()
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2) + 24 * 24
    assert model.train_flops_per_token(16) == 6 * (matrices + 4 * 2 * 24 * 16)


def test_dropout_after_the_embedding_s_norm_and_only_in_training(build):
    model, tokens = build(bert_spec(dropout=0.5)), ids(1, 6)
    torch.testing.assert_close(alone(model.eval(), tokens), alone(build(bert_spec()), tokens), rtol=0, atol=0)
    seen = []
    model.train().blocks[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    alone(model, tokens)
    assert 0.2 < (seen[0] == 0).double().mean() < 0.8


def test_longer_than_the_learned_positions():
    with pytest.raises(UserError, match="position 48 lies outside the 48 learned ones"):
        alone(bert_spec().build(), ids(1, 49))
    assert bert_spec().build().position_limit == 48
    assert bert_spec(position=Rope()).build().position_limit is None


def test_rotary_positions_and_any_block(build, gpt):
    """BERT with RoPE: the parts know nothing of the skeleton."""
    model = build(bert_spec(position=Rope(), embedding_dim=8, head=Lm(tied=True, width=8)))
    hidden = alone(model, ids(1, 6))
    assert model.head(hidden).shape == (1, 6, 97)
    assert not torch.allclose(hidden[0, 0], alone(model, ids(1, 6).flip(1))[0, 5])


@pytest.mark.parametrize(
    ("changes", "path", "repair"),
    [
        ({"unique_layers": 3}, "unique_layers", "unique_layers=1"),
        ({"unique_layers": 0}, "unique_layers", "unique_layers=1"),
        ({"embedding_dim": 0, "head": Lm(tied=False)}, "embedding_dim", "embedding_dim=1"),
        ({"embedding_dim": 8}, "head.width", "head.width=8"),
        (
            {"unique_layers": 2, "others": {"b": LayerSpec()}, "pattern": ["base", "b"]},
            "unique_layers",
            "unique_layers=null",
        ),
    ],
)
def test_checks(changes, path, repair):
    with pytest.raises(ConfigError) as error:
        bert_spec(**changes)
    assert [(problem.path, problem.repair) for problem in error.value.problems] == [(path, repair)]


def test_small():
    assert albert_spec(unique_layers=1).small(0.5) == {"n_layers": 2, "embedding_dim": 4, "unique_layers": 1}
    assert albert_spec(unique_layers=4).small(0.5)["unique_layers"] == 2
    assert bert_spec().small(0.5) == {"n_layers": 2}


def test_compiles_without_a_break(build):
    model, tokens = build(albert_spec(), torch.float32), ids(2, 9)
    batch = batch_of(torch.tensor([[1] * 4 + [2] * 5, [1] * 9]), tokens, torch.zeros_like(tokens))
    compiled = torch.compile(lambda: model(tokens, model.context(batch)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), model(tokens, model.context(batch)), rtol=1e-5, atol=1e-5)
