"""Modified Kneser-Ney smoothing against a plain reference on dicts of tuples."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict

import pytest
import torch

from llmfactory.config.compose import compose_job
from llmfactory.core.batch import IGNORE
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import ConfigError
from llmfactory.inference.cache import KvCache
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY
from llmfactory.model.kneser_ney import KneserNeyModel
from llmfactory.model.spec import KneserNey

V = 12


class Reference:
    """Chen and Goodman 1998, from texts (lists of tokens); the first token of a text is only ever a history."""

    def __init__(self, texts: list[list[int]], order: int, size: int = V) -> None:
        self.order, self.size = order, size
        raw = [Counter[tuple[int, ...]]() for _ in range(order + 1)]
        first = [Counter[tuple[int, ...]]() for _ in range(order + 1)]
        for known in (text[:end] for text in texts for end in range(2, len(text) + 1)):
            for n in range(1, min(order, len(known)) + 1):
                gram = tuple(known[-n:])
                raw[n][gram] += 1
                if n == len(known):
                    first[n][gram] += 1
        self.counts = [Counter[tuple[int, ...]]() for _ in range(order + 1)]
        self.counts[order] = raw[order]
        for n in range(1, order):
            behind = defaultdict(set)
            for gram in raw[n + 1]:
                behind[gram[1:]].add(gram[0])
            self.counts[n] = Counter({gram: len(behind[gram]) + first[n][gram] for gram in raw[n]})
        self.discounts = [self._discounts(counts) for counts in self.counts]

    @staticmethod
    def _discounts(counts: Counter) -> list[float]:
        n = [sum(count == i for count in counts.values()) for i in range(5)]
        if all(n[1:]):
            y = n[1] / (n[1] + 2 * n[2])
            found = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
            if all(0 <= d <= i for i, d in enumerate(found, 1)):
                return [0.0, *found]
        return [0.0, 0.5, 1.0, 1.5]

    def p(self, token: int, history: tuple[int, ...]) -> float:
        history = history[max(0, len(history) - self.order + 1) :]
        shorter = self.p(token, history[1:]) if history else 1 / self.size
        n = len(history) + 1
        after = {gram[-1]: count for gram, count in self.counts[n].items() if gram[:-1] == history}
        total = sum(after.values())
        if not total:
            return shorter
        d = self.discounts[n]
        gamma = sum(d[min(count, 3)] for count in after.values()) / total
        return max(after.get(token, 0) - d[min(after.get(token, 0), 3)], 0) / total + gamma * shorter


def text(seed: int, length: int) -> list[int]:
    """Words of a small chain, so that all kinds of counts occur."""
    numbers, tokens = random.Random(seed), [0]
    while len(tokens) < length:
        after = (tokens[-1] * 2 + 1) % (V - 1)
        tokens.append(numbers.choice([after, after, numbers.randrange(V), 3]))
    return tokens


TEXTS = [text(seed, length) for seed, length in enumerate((60, 45, 80, 7, 2, 33))]


def batch_of(texts: list[list[int]], width: int) -> dict[str, torch.Tensor]:
    """Texts packed into rows; each is whole in one row."""
    rows: list[list[tuple[int, int, int]]] = [[]]
    for document in texts:
        if len(rows[-1]) + len(document) - 1 > width:
            rows.append([])
        number = 1 + max((segment for _, _, segment in rows[-1]), default=0)
        rows[-1] += [(token, label, number) for token, label in itertools.pairwise(document)]
    rows = [row + [(5, IGNORE, 0)] * (width - len(row)) for row in rows]
    tokens, labels, segments = torch.tensor(rows).unbind(-1)
    return {"tokens": tokens, "labels": labels, "segments": segments, "positions": torch.zeros_like(tokens)}


def fitted(order: int) -> KneserNeyModel:
    model = KneserNeyModel(KneserNey(vocab_size=V, max_positions=128, order=order))
    whole = batch_of(TEXTS, 110)
    model.count(({name: field[row : row + 1] for name, field in whole.items()} for row in range(len(whole["tokens"]))), True)
    return model


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_reference(order: int) -> None:
    model, reference = fitted(order), Reference(TEXTS, order)
    unseen = [text(seed, 25) for seed in (90, 91)] + [[0, 11, 11, 11]]
    for document in (*unseen, TEXTS[3]):
        batch = batch_of([document], 60)
        hidden = model(batch["tokens"], model.context(batch))
        logits = model.head(hidden)[0]
        nll = 0.0
        for t, token in enumerate(document[1:]):
            expected = [reference.p(other, tuple(document[: t + 1])) for other in range(V)]
            torch.testing.assert_close(logits[t].exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)
            nll -= torch.tensor(expected[token], dtype=torch.float64).log().item()
        assert model.head.cross_entropy(hidden, batch["labels"]).item() == pytest.approx(nll, rel=1e-10)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one(order: int) -> None:
    model = fitted(order)
    histories = torch.randint(-1, V, (200, order - 1))
    torch.testing.assert_close(model.head(histories).exp().sum(-1), torch.ones(200, dtype=torch.float64))


def test_nothing_before_a_text_is_no_token_of_it() -> None:
    """Where every context was seen, -1 must not be taken for the last id of the vocabulary."""
    numbers = random.Random(3)
    texts = [[0, *(numbers.randrange(3) for _ in range(80))] for _ in range(4)]
    model, reference = KneserNeyModel(KneserNey(vocab_size=3, max_positions=128, order=4)), Reference(texts, 4, size=3)
    model.count([batch_of(texts, 80)], True)
    for history in itertools.product((-1, 0, 1, 2), repeat=3):
        known = tuple(token for token in history if token >= 0)
        if history[3 - len(known) :] == known:
            expected = torch.tensor([reference.p(token, known) for token in range(3)], dtype=torch.float64)
            torch.testing.assert_close(model.head(torch.tensor([history]))[0].exp(), expected)


def test_every_token_is_possible() -> None:
    assert fitted(3).head(torch.tensor([[3, 3]])).isfinite().all()


def test_discounts_of_a_large_text_are_estimated_and_of_a_tiny_one_usual() -> None:
    estimated = [order.discounts().tolist() for order in fitted(3).orders]
    assert any(found[1:] != [0.5, 1.0, 1.5] for found in estimated)
    assert all(0 <= found[i] <= i for found in estimated for i in range(4))
    tiny = KneserNeyModel(KneserNey(vocab_size=V, max_positions=8, order=2))
    tiny.count([batch_of([[0, 1, 2]], 4)], True)
    assert tiny.orders[1].discounts().tolist() == [0.0, 0.5, 1.0, 1.5]


def test_texts_shorter_than_the_order() -> None:
    model = KneserNeyModel(KneserNey(vocab_size=V, max_positions=8, order=5))
    model.count([batch_of([[0, 1, 2]], 4)], True)
    torch.testing.assert_close(model.head(torch.tensor([[0, 1, 2, 3]])).exp().sum(-1), torch.ones(1, dtype=torch.float64))


def test_weights_count() -> None:
    model, batch = fitted(3), batch_of(TEXTS[3:5], 12)
    hidden = model(batch["tokens"], model.context(batch))
    weights = torch.rand(batch["labels"].shape, dtype=torch.float64)
    alone = torch.zeros_like(weights)
    for t in range(batch["labels"].shape[1]):
        alone[0, t] = model.head.cross_entropy(hidden[:, t], batch["labels"][:, t])
    found = model.head.cross_entropy(hidden, batch["labels"], weights)
    torch.testing.assert_close(found, (alone * weights).sum())


def test_step_by_step_equals_the_whole() -> None:
    model, tokens, state = fitted(4), torch.tensor([TEXTS[0][:9], TEXTS[1][:9]]), KvCache(9)

    def row(length: int) -> Context:
        return Context(torch.zeros(1, length), CausalMask(length))

    pieces = [model(tokens[:, a:b], row(b - a).with_(state=state)) for a, b in ((0, 1), (1, 5), (5, 6), (6, 9))]
    assert torch.equal(torch.cat(pieces, 1), model(tokens, row(9)))


def test_prompts_of_different_lengths_generate_as_alone() -> None:
    model, prompts = fitted(3), [[0, 1, 3], [0], [0, 1, 3, 7, 3]]
    together = generate(model, prompts, max_tokens=6, sampling=GREEDY)
    assert together == [generate(model, [prompt], max_tokens=6, sampling=GREEDY)[0] for prompt in prompts]


def test_room_is_what_a_checkpoint_says() -> None:
    model, empty = fitted(3), KneserNeyModel(KneserNey(vocab_size=V, max_positions=128, order=3))
    saved = model.state_dict()
    empty.make_room({name: {"shape": list(tensor.shape), "dtype": "int64"} for name, tensor in saved.items()})
    empty.load_state_dict(saved)
    histories = torch.randint(0, V, (50, 2))
    assert torch.equal(empty.head(histories), model.head(histories))
    assert empty.size == model.size == sum(len(order.grams) for order in model.orders)


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="order"):
        KneserNey(vocab_size=V, max_positions=8, order=0)
    with pytest.raises(ConfigError, match="no vectors"):
        KneserNey(vocab_size=V, max_positions=8, order=2, dim=16)
    with pytest.raises(ConfigError, match="no weights"):
        KneserNey(vocab_size=V, max_positions=8, order=2, init_std=0.5)


def test_rows_longer_than_it_is_made_for() -> None:
    with pytest.raises(ConfigError, match="max_positions=1024"):
        compose_job(["model=kneser_ney", "data.seq_len=1025"])
