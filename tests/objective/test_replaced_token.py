"""ELECTRA's two terms against plain equations, and its generator beside the model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_job import toy_job, train

from llmfactory.checkpoint import io
from llmfactory.core.batch import IGNORE, split
from llmfactory.core.errors import ConfigError
from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PostNorm
from llmfactory.model.declarations import declarations
from llmfactory.model.embedding.spec import TokenSegment
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Discriminator
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import LayerNorm
from llmfactory.model.position.spec import Learned
from llmfactory.model.spec import EncoderOnly
from llmfactory.objective.replaced_token import draw
from llmfactory.objective.spec import ReplacedToken
from llmfactory.run.fit import build_stage
from llmfactory.stage.spec import Pretrain

MODEL = EncoderOnly(
    vocab_size=300,
    dim=32,
    max_positions=48,
    init_std=0.3,
    n_layers=2,
    norm=LayerNorm(),
    position=Learned(),
    attention=Gqa(n_heads=4, bias=True),
    ffn=Mlp(hidden=64, activation=Activation.gelu),
    block=PostNorm(),
    embedding=TokenSegment(n_types=2),
    head=Discriminator(activation=Activation.gelu),
    embedding_norm=True,
)
T = 24


def batch_of(rows: int = 6) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (rows, T), generator=make)
    segments = torch.ones(rows, T, dtype=torch.int64)
    segments[1, T // 2 :] = 0
    masked = (torch.rand(rows, T, generator=make) < 0.4) & (segments > 0)
    return {
        "tokens": tokens.where(~masked, 299),
        "labels": tokens.where(masked, IGNORE),
        "segments": segments,
        "positions": torch.arange(T).expand(rows, T),
        "uniform": torch.rand(rows, T, generator=make, dtype=torch.float64),
    }


def equipped(spec: ReplacedToken):
    model = MODEL.build()
    spec.build().equip(model)
    initialize(model, 0)
    return model.double().eval()


def test_the_loss_is_the_paper_s() -> None:
    spec = ReplacedToken(weight=7.0)
    model, batch, objective = equipped(spec), batch_of(), spec.build()
    context = model.context(batch)
    outputs = objective.outputs(model, batch, context)
    terms = objective(outputs, batch)
    logits = model.generator.head(model.generator(batch["tokens"], context))
    masked, real = batch["labels"] != IGNORE, batch["segments"] > 0
    generator = F.cross_entropy(logits[masked], batch["labels"][masked])
    torch.testing.assert_close(terms["generator"][0] / terms["generator"][1], generator)
    shown, original = batch["tokens"].clone(), batch["tokens"].where(~masked, batch["labels"])
    for row, column in masked.nonzero().tolist():
        below = logits[row, column].softmax(-1).cumsum(-1)
        shown[row, column] = int((below <= batch["uniform"][row, column]).sum())
    assert torch.equal(outputs.tokens, shown)
    replaced = (shown != original).double()
    assert 0 < replaced.sum() < masked.sum() + 1
    told = model.head(model(shown, context))[..., 0]
    discriminator = F.binary_cross_entropy_with_logits(told[real], replaced[real])
    torch.testing.assert_close(terms["discriminator"][0] / terms["discriminator"][1], 7 * discriminator)
    assert terms["generator"][1] == masked.sum()
    assert terms["discriminator"][1] == real.sum()
    assert objective.denominators(batch) == {name: count for name, (_, count) in terms.items()}


def test_a_token_drawn_right_is_no_replacement() -> None:
    spec = ReplacedToken()
    model, batch, objective = equipped(spec), batch_of(), spec.build()
    outputs = objective.outputs(model, batch, model.context(batch))
    masked = batch["labels"] != IGNORE
    right = dataclasses.replace(outputs, tokens=batch["tokens"].where(~masked, batch["labels"]))
    logits = outputs.head(outputs.hidden)[..., 0][batch["segments"] > 0]
    expected = 50 * F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="sum")
    torch.testing.assert_close(objective(right, batch)["discriminator"][0], expected)


def test_micro_batches_draw_the_same() -> None:
    spec = ReplacedToken()
    model, batch, objective = equipped(spec), batch_of(), spec.build()
    whole = objective(objective.outputs(model, batch, model.context(batch)), batch)
    for size in (1, 4):
        parts = [objective(objective.outputs(model, piece, model.context(piece)), piece) for piece in split(batch, size)]
        for name, (total, count) in whole.items():
            torch.testing.assert_close(sum(part[name][0] for part in parts), total)
            assert sum(part[name][1] for part in parts) == count


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0])

    class Fixed:
        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            return logits.expand(len(hidden), 5)

    drawn = draw(Fixed(), torch.zeros(20_000, 1), torch.rand(20_000, dtype=torch.float64))  # type: ignore[arg-type]
    shares = np.bincount(drawn.numpy(), minlength=5) / 20_000
    assert shares == pytest.approx(logits.softmax(-1).numpy(), abs=0.012)
    edges = draw(Fixed(), torch.zeros(2, 1), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))  # type: ignore[arg-type]
    assert edges.tolist() == [0, 4]
    assert draw(Fixed(), torch.zeros(0, 1), torch.zeros(0)).tolist() == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("scale", "heads", "dim", "hidden"), [(0.25, 1, 8, 16), (0.5, 2, 16, 32), (1.0, 4, 32, 64)])
def test_the_generator_is_smaller_and_shares_the_vectors(scale: float, heads: int, dim: int, hidden: int) -> None:
    spec = ReplacedToken(generator_scale=scale)
    small = spec.generator(MODEL)
    assert (small.attention.n_heads, small.dim, small.ffn.hidden, small.n_layers) == (heads, dim, hidden, 2)
    model = equipped(spec)
    assert model.generator.embedding is model.embedding
    assert model.generator.head.weight is model.embedding.weight
    names = dict(model.named_parameters())
    assert not [name for name in names if name.startswith("generator.embedding.")]
    assert set(declarations(model)) == set(names)


def test_both_learn_and_nothing_flows_back_through_the_samples() -> None:
    spec = ReplacedToken()
    model, batch, objective = equipped(spec), batch_of(), spec.build()
    terms = objective(objective.outputs(model, batch, model.context(batch)), batch)
    terms["discriminator"][0].backward()
    flowed = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert "generator" not in flowed
    assert {"blocks", "head", "embedding"} <= flowed
    terms["generator"][0].backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "embedding.types" not in name)


def test_the_stage_trains_and_decays_the_generator_too(tmp_path) -> None:
    job = toy_job(tmp_path, model=MODEL, stage=Pretrain(objective=ReplacedToken()))
    stage = build_stage(job, isolated=True)
    trained = {id(p) for group in stage.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for p in stage.model.parameters()}
    assert any(name.startswith("generator.") for name in stage.rates.decays)


def test_the_model_is_used_without_its_generator(tmp_path) -> None:
    job = toy_job(tmp_path, model=MODEL, stage=Pretrain(objective=ReplacedToken()), trainer__max_steps=2, trainer__save_every=2)
    fitted, _ = train(job, tmp_path / "run")
    alone, both = MODEL.build(), MODEL.build()
    assert fitted.checkpoint is not None
    io.load_weights(fitted.checkpoint, alone)
    weights = dict(fitted.model.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in alone.named_parameters())
    ReplacedToken().build().equip(both)
    io.load_weights(fitted.checkpoint, both)
    assert torch.equal(both.generator.head.transform.dense.weight, fitted.model.generator.head.transform.dense.weight)


def test_a_size_that_is_none() -> None:
    with pytest.raises(ConfigError):
        ReplacedToken(generator_scale=0.25).generator(dataclasses.replace(MODEL, attention=Gqa(n_heads=4, n_kv_heads=4)))
