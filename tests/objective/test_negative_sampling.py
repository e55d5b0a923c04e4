"""Skip-gram and CBOW: the loss against its equation, pair by pair; sums over rows; what learning brings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmfactory.core.batch import IGNORE, split
from llmfactory.data.corruption.chance import row_keys
from llmfactory.data.corruption.windows import Windows
from llmfactory.model.embedding_model import WordVectors
from llmfactory.model.initialize import initialize
from llmfactory.model.spec import EmbeddingModel
from llmfactory.objective.cbow import CbowObjective
from llmfactory.objective.negative_sampling import NegativeSampling
from llmfactory.objective.objective import Outputs
from llmfactory.objective.skip_gram import SkipGramObjective
from llmfactory.objective.spec import Cbow, SkipGram

V, T = 24, 16
KINDS = {"skip_gram": SkipGramObjective(SkipGram(window=2, negatives=3)), "cbow": CbowObjective(Cbow(window=2, negatives=3))}


@pytest.fixture(params=KINDS)
def objective(request: pytest.FixtureRequest) -> NegativeSampling:
    return KINDS[request.param]


def model(std: float = 0.7) -> WordVectors:
    found = WordVectors(EmbeddingModel(vocab_size=V, dim=6, max_positions=T, init_std=std, output_std=std))
    initialize(found, 0)
    return found.double()


def batch_of(objective: NegativeSampling, tokens: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    segments = torch.ones_like(tokens)
    segments[0, 11:] = 2
    segments[-1, 9:] = 0
    plain = {"tokens": tokens, "labels": tokens, "segments": segments, "positions": torch.zeros_like(tokens)}
    corrupt = Windows(np.arange(1, V + 1), T, window=2, negatives=3, subsample=0.05, noise_power=0.75, each=objective.each)
    return corrupt(plain, row_keys(seed, np.arange(len(tokens))))


def loss(objective: NegativeSampling, words: WordVectors, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return objective(objective.outputs(words, batch, words.context(batch)), batch)["loss"]


def test_equals_its_equation(objective: NegativeSampling) -> None:
    words, batch = model(), batch_of(objective, torch.randint(0, V, (3, T)))
    v, u = words.embedding.weight, words.head.weight
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(3):
        for t in range(T):
            near = [word for word in batch["near"][row, t].tolist() if word != IGNORE]
            if objective.each:
                told = [(slot, word) for slot, word in enumerate(batch["near"][row, t].tolist()) if word != IGNORE]
                h = v[batch["tokens"][row, t]]
            else:
                told = [(0, int(batch["tokens"][row, t]))] if near else []
                h = v[near].mean(0) if near else None
            for slot, word in told:
                count += 1
                total = total - F.logsigmoid(u[word] @ h)
                for noise in batch["noise"][row, t, slot].tolist():
                    if noise != IGNORE:
                        total = total - F.logsigmoid(-u[noise] @ h)
    found, denominator = loss(objective, words, batch)
    assert denominator == count > 20
    torch.testing.assert_close(found, total)


def test_rows_add_up(objective: NegativeSampling) -> None:
    words, batch = model(), batch_of(objective, torch.randint(0, V, (5, T)))
    whole, pieces = loss(objective, words, batch), [loss(objective, words, piece) for piece in split(batch, 2)]
    torch.testing.assert_close(sum(total for total, _ in pieces), whole[0])
    assert sum(count for _, count in pieces) == whole[1]


def test_a_row_of_padding_counts_nothing(objective: NegativeSampling) -> None:
    words, batch = model(), batch_of(objective, torch.randint(0, V, (2, T)))
    batch["labels"][:] = IGNORE
    batch["segments"][:] = 0
    total, count = loss(objective, words, batch)
    assert (total, count) == (0, 0)


def test_unknowing_vectors_have_the_stated_loss(objective: NegativeSampling) -> None:
    """With all products 0, each target costs (1 + its noise) log 2."""
    words, batch = model(), batch_of(objective, torch.randint(0, V, (2, T)))
    with torch.no_grad():
        words.head.weight.zero_()
    total, _ = loss(objective, words, batch)
    targets = objective.targets(batch) != IGNORE
    noise = ((batch["noise"] != IGNORE) & targets[..., None]).sum()
    torch.testing.assert_close(total, np.log(2) * (targets.sum() + noise).double())


def test_words_that_stand_together_become_neighbours(objective: NegativeSampling) -> None:
    """Text of two halves of the vocabulary that never mix: after training, each word's nearest words are of its own half."""
    words = model(std=0.1)
    optimizer, generator = torch.optim.Adam(words.parameters(), lr=0.05), torch.Generator().manual_seed(0)
    for step in range(60):
        half = torch.randint(0, 2, (16, 1), generator=generator) * (V // 2)
        tokens = half + torch.randint(0, V // 2, (16, T), generator=generator)
        total, count = loss(objective, words, batch_of(objective, tokens, step))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    vectors = F.normalize(words.embedding.weight.detach(), dim=-1)
    nearest = (vectors @ vectors.T).fill_diagonal_(-1).argmax(-1)
    own = (nearest < V // 2) == (torch.arange(V) < V // 2)
    assert own.double().mean() > 0.9


def test_its_rows_come_from_the_frequencies_of_the_training_text(objective: NegativeSampling) -> None:
    from types import SimpleNamespace

    texts = [SimpleNamespace(frequencies=lambda size, part=part: part * np.arange(size)) for part in (0.25, 0.75)]
    vocabulary = SimpleNamespace(texts=texts, size=V)
    made = objective.corruption(vocabulary, T)
    assert (made.raw_length, made.window, made.negatives, made.each) == (T, 2, 3, objective.each)
    spec = dataclasses.replace(objective.spec, window=7, negatives=9, subsample=0.01, noise_power=0.0)
    other = spec.build().corruption(vocabulary, T)
    assert (other.window, other.negatives, other.each) == (7, 9, objective.each)
    assert other.kept_V[V - 1] == pytest.approx((0.01 * V / 2) ** 0.5)
    assert np.allclose(np.diff(other.noise_V), 1 / (V - 1))
    assert (dataclasses.replace(spec, subsample=None).build().corruption(vocabulary, T).kept_V == 1).all()
    torch.testing.assert_close(
        torch.from_numpy(np.diff(made.noise_V, prepend=0) * (np.arange(V) ** 0.75).sum()), torch.from_numpy(np.arange(V) ** 0.75)
    )


def test_the_model_is_two_tables() -> None:
    words = model()
    tokens = torch.randint(0, V, (2, 3, 4))
    assert torch.equal(
        words(tokens, words.context({"tokens": tokens, "positions": tokens}, False)), words.embedding.weight[tokens]
    )
    assert words.train_flops_per_token(T) == 0
    assert isinstance(Outputs(words.embedding.weight, words.head).head.weight, torch.Tensor)
    assert [name for name, _ in words.chain()] == ["embedding", "head"]
