"""The recurrent skeleton: its wiring, its sizes, packed rows, decoding, what it may be made of."""

from __future__ import annotations

import dataclasses

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
from llmfactory.model.ffn.spec import Activation, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize
from llmfactory.model.mixer.spec import Gru, LinearAttention, Lstm, Mamba, Rnn
from llmfactory.model.norm.spec import LayerNorm, None_, RmsNorm
from llmfactory.model.spec import Recurrent

PUBLISHED = {
    # Zaremba et al. 2014, section 4.1: 20M and 66M parameters as counted by Gal and Ghahramani 2016, table 1; the sizes
    # 650 and 1500 of two layers, 10,000 words, one bias a gate: 2 V d + V + 2 (8 d^2 + 4 d).
    "lstm_medium": 19_775_200,
    "lstm_large": 66_022_000,
    # The published checkpoints state-spaces/mamba-*.
    "mamba_130m": 129_135_360,
    "mamba_370m": 371_516_416,
    "mamba_790m": 793_204_224,
    "mamba_1_4b": 1_372_178_432,
    "mamba_2_8b": 2_768_345_600,
}


def spec_of(**changes: object) -> Recurrent:
    fields: dict[str, object] = {
        "vocab_size": 41,
        "dim": 16,
        "max_positions": 32,
        "n_layers": 3,
        "embedding": Token(),
        "mixer": Lstm(),
        "norm": None_(),
        "head": Lm(tied=False),
        "residual": False,
    }
    return Recurrent(**{**fields, **changes})


KINDS = {
    "lstm": spec_of(),
    "gru": spec_of(mixer=Gru(), residual=True, norm=LayerNorm()),
    "rnn": spec_of(mixer=Rnn(), head=Lm(tied=True)),
    "mamba": spec_of(mixer=Mamba(expand=2, state=3, conv=3), residual=True, norm=RmsNorm(), head=Lm(tied=True)),
    "linear": spec_of(
        mixer=LinearAttention(n_heads=2), residual=True, norm=LayerNorm(), ffn=Mlp(hidden=24, activation=Activation.gelu)
    ),
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, build):
    return build(KINDS[request.param])


def row(length: int, state: KvCache | None = None) -> Context:
    return Context(torch.arange(length)[None], CausalMask(length), state)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_sizes(preset: str) -> None:
    with torch.device("meta"):
        assert parameters(compose_job([f"model={preset}", "stage=describe"]).job.model.build()) == PUBLISHED[preset]


def test_the_wiring(build) -> None:
    """A layer as its definition says, by hand."""
    tokens = torch.randint(0, 41, (2, 6))
    for spec in (KINDS["linear"], dataclasses.replace(KINDS["linear"], residual=False), KINDS["lstm"]):
        model = build(spec)
        x = model.embedding.weight[tokens]
        for layer in model.layers:
            y = layer.mixer(layer.norm(x), row(6))
            x = x + y if spec.residual else y
            if spec.ffn is not None:
                y = layer.ffn(layer.ffn_norm(x), row(6))
                x = x + y if spec.residual else y
        torch.testing.assert_close(model(tokens, row(6)), model.norm(x))


def test_step_by_step_equals_the_whole(model) -> None:
    tokens, state = torch.randint(0, 41, (2, 9)), KvCache(9)
    whole = model.head(model(tokens, row(9)))
    pieces = [model(tokens[:, start:end], row(end - start, state)) for start, end in ((0, 4), (4, 5), (5, 6), (6, 9))]
    torch.testing.assert_close(model.head(torch.cat(pieces, 1)), whole)


def test_packed_rows_are_their_documents(model) -> None:
    tokens = torch.randint(0, 41, (1, 9))
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0]])
    batch = {"tokens": tokens, "positions": torch.zeros_like(tokens), "segments": segments}
    hidden = model(tokens, model.context(batch))
    torch.testing.assert_close(hidden[:, :4], model(tokens[:, :4], row(4)))
    torch.testing.assert_close(hidden[:, 4:7], model(tokens[:, 4:7], row(3)))


def test_prompts_of_different_lengths_generate_as_alone(model) -> None:
    prompts = [[3, 5, 7, 9, 11], [4], [8, 2, 6]]
    together = generate(model, prompts, max_tokens=6, sampling=GREEDY)
    assert together == [generate(model, [prompt], max_tokens=6, sampling=GREEDY)[0] for prompt in prompts]


def test_every_parameter_is_declared_and_used(model) -> None:
    assert list(declarations(model)) == [name for name, _ in model.named_parameters()]
    model.head(model(torch.randint(0, 41, (2, 9)), row(9))).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_matrices_that_write_to_the_residual_stream_start_smaller() -> None:
    def std(**changes: object) -> float:
        model = spec_of(mixer=LinearAttention(n_heads=2), dim=64, init_std=0.5, **changes).build()
        initialize(model, 0)
        return float(torch.stack([layer.mixer.o.weight.detach().std() for layer in model.layers]).mean())

    assert std() == pytest.approx(0.5, rel=0.05)
    assert std(residual=True) == pytest.approx(0.5 / 3**0.5, rel=0.05)
    assert std(residual=True, ffn=Mlp(hidden=8, activation=Activation.relu)) == pytest.approx(0.5 / 6**0.5, rel=0.05)
    assert std(residual=True, depth_scaled_init=False) == pytest.approx(0.5, rel=0.05)


def test_dropout_is_for_training_only(build) -> None:
    model, tokens = build(spec_of(dropout=0.5)), torch.randint(0, 41, (2, 9))
    torch.testing.assert_close(model.eval()(tokens, row(9)), model(tokens, row(9)), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(tokens, row(9)), model(tokens, row(9)))


def test_multiply_adds() -> None:
    """Of one LSTM layer: eight matrices of dim x dim; of linear attention four and its state, written and read."""
    lstm = spec_of(n_layers=1).build().train_flops_per_token(32)
    assert lstm == 6 * (41 * 16 + 8 * 16 * 16)
    linear = spec_of(n_layers=1, mixer=LinearAttention(n_heads=2)).build().train_flops_per_token(32)
    assert linear == 6 * (41 * 16 + 4 * 16 * 16 + 2 * 16 * 8)
    inner = 32
    mamba = spec_of(n_layers=1, mixer=Mamba(expand=2, state=3, conv=4)).build().train_flops_per_token(32)
    assert mamba == 6 * (41 * 16 + 2 * 16 * inner + inner * 4 + inner * 7 + inner + 2 * inner * 3 + inner * 16)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        spec_of(mixer=LinearAttention(n_heads=3))
    with pytest.raises(ConfigError, match="n_layers"):
        spec_of(n_layers=0)


def test_rows_longer_than_it_is_made_for(build) -> None:
    with pytest.raises(ConfigError, match="max_positions=1024"):
        compose_job(["model=lstm_tiny", "data.seq_len=1025"])
    with pytest.warns(UserWarning, match="rows of 32 tokens"):
        assert len(generate(build(spec_of()), [[1, 2]], max_tokens=40, sampling=GREEDY)[0]) == 31


@pytest.mark.parametrize("preset", ["mamba_2_8b", "lstm_large", "linear_transformer_tiny"])
def test_toy(preset: str) -> None:
    job = compose_job([f"model={preset}", "toy=true"]).job
    assert parameters(job.model.build()) < 200_000
    assert job.model.n_layers == 2
