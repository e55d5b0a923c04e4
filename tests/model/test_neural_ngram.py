"""The feed-forward n-gram model against its equation, and its published size."""

from __future__ import annotations

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.inference.cache import KvCache
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY
from llmfactory.model.count import parameters
from llmfactory.model.declarations import declarations
from llmfactory.model.embedding.spec import Token
from llmfactory.model.head.spec import Lm
from llmfactory.model.spec import NeuralNgram


def spec_of(**changes: object) -> NeuralNgram:
    fields: dict[str, object] = {
        "vocab_size": 31,
        "dim": 5,
        "max_positions": 32,
        "order": 4,
        "hidden": 7,
        "direct": True,
        "embedding": Token(),
        "head": Lm(tied=False, bias=True),
    }
    return NeuralNgram(**{**fields, **changes})


def row(length: int, state: KvCache | None = None) -> Context:
    return Context(torch.arange(length)[None], CausalMask(length), state)


@pytest.mark.parametrize("direct", [True, False])
def test_equals_its_equation(build, direct: bool) -> None:
    model, tokens = build(spec_of(direct=direct)), torch.randint(0, 31, (1, 8))
    logits = model.head(model(tokens, row(8)))[0]
    for t in range(8):
        vectors = [model.embedding.weight[tokens[0, i]] if i >= 0 else model.missing for i in (t - 2, t - 1, t)]
        x = torch.cat(vectors)
        hidden = torch.tanh(model.up.weight @ x + model.up.bias)
        y = model.head.bias + model.head.weight[:, :7] @ hidden
        if direct:
            y = y + model.head.weight[:, 7:] @ x
        torch.testing.assert_close(logits[t], y)


def test_step_by_step_equals_the_whole(build) -> None:
    model, tokens, state = build(spec_of()), torch.randint(0, 31, (2, 9)), KvCache(9)
    pieces = [model(tokens[:, a:b], row(b - a, state)) for a, b in ((0, 4), (4, 5), (5, 6), (6, 9))]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens, row(9)))


def test_prompts_of_different_lengths_generate_as_alone(build) -> None:
    model, prompts = build(spec_of()), [[3, 5, 7, 9, 11], [4], [8, 2, 6]]
    together = generate(model, prompts, max_tokens=6, sampling=GREEDY)
    assert together == [generate(model, [prompt], max_tokens=6, sampling=GREEDY)[0] for prompt in prompts]


def test_every_parameter_is_declared_and_used(build) -> None:
    model = build(spec_of())
    assert set(declarations(model)) == {name for name, _ in model.named_parameters()}
    model.head(model(torch.randint(0, 31, (2, 9)), row(9))).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_published_size() -> None:
    """Bengio et al. 2003, section 2.1: |V| (1 + n m + h) + h (1 + (n - 1) m) with direct connections and n = 5; our one vector
    for missing tokens adds m."""
    V, n, m, h = 16_383, 5, 30, 100
    with torch.device("meta"):
        found = parameters(compose_job(["model=neural_ngram_brown", "stage=describe"]).job.model.build())
    assert found == V * (1 + n * m + h) + h * (1 + (n - 1) * m) + m


def test_dropout_is_for_training_only(build) -> None:
    model, tokens = build(spec_of(dropout=0.5)), torch.randint(0, 31, (2, 9))
    torch.testing.assert_close(model.eval()(tokens, row(9)), model(tokens, row(9)), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(tokens, row(9)), model(tokens, row(9)))


def test_multiply_adds() -> None:
    assert spec_of().build().train_flops_per_token(9) == 6 * (15 * 7 + 31 * (7 + 15))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="width"):
        spec_of(head=Lm(tied=True))
    spec_of(head=Lm(tied=True, width=5))
    with pytest.raises(ConfigError, match="order"):
        spec_of(order=1)


def test_rows_longer_than_it_is_made_for() -> None:
    with pytest.raises(ConfigError, match="max_positions=1024"):
        compose_job(["model=neural_ngram_tiny", "data.seq_len=1025"])
