"""Rankings: all pairs of a record, each record alike, against a loop over the paper's equation."""

from __future__ import annotations

import itertools

import torch
from judged import close, found, gradient, judged, reward

from llmfactory.objective.spec import BradleyTerry, Ranking

NAN = float("nan")
SIZES = [[3, 4, 2, 5], [4, 2, 1, 1], [2, 3, 4, 1], [3, 3, 1, 1], [1, 1, 1, 1]]
SCORES = torch.tensor([[9, 5, 5, 1], [NAN] * 4, [3, 2, 1, NAN], [4, 4, NAN, NAN], [NAN] * 4])


def case():
    outputs, batch = judged(SIZES)
    return outputs, {**batch, "scores": SCORES, "count": torch.tensor([4, 2, 3, 2, 0])}


def pairs(row):
    there = [number for number, size in enumerate(SIZES[row]) if size > 1]
    return [pair for pair in itertools.combinations(there, 2) if SCORES[row, pair[0]] != SCORES[row, pair[1]]]


def test_the_loss_is_the_paper_s():
    outputs, batch = case()
    assert [len(pairs(row)) for row in range(5)] == [5, 1, 3, 0, 0], "a record whose answers are all equal teaches nothing"
    losses, right, margins = [], [], []
    for row in range(3):
        apart = [reward(outputs, SIZES, row, i) - reward(outputs, SIZES, row, j) for i, j in pairs(row)]
        losses.append(torch.stack([-torch.log(torch.sigmoid(one)) for one in apart]).mean())
        right.append(sum(float(one > 0) for one in apart) / len(apart))
        margins.append(torch.stack(apart).mean())
    ours = found(Ranking().build(), outputs, batch)
    want = torch.stack(losses).mean()
    close(ours["loss"], want)
    close(gradient(outputs, ours["loss"]), gradient(outputs, want))
    close(ours["accuracy"], sum(right) / 3)
    close(ours["margin"], torch.stack(margins).mean())
    there = [(row, number) for row in range(3) for number, size in enumerate(SIZES[row]) if size > 1]
    means = [torch.stack([reward(outputs, SIZES, r, n) for r, n in there if r == row]).mean() for row in range(3)]
    close(ours["reward"], torch.stack(means).mean())


def test_a_ranking_of_two_is_a_pair():
    outputs, batch = judged([[4, 3], [2, 6]])
    ranked = found(Ranking().build(), outputs, {**batch, "scores": torch.tensor([[2.0, 1.0], [NAN, NAN]])})
    pair = found(BradleyTerry().build(), outputs, {**batch, "margin": torch.tensor([NAN, NAN])})
    for name, value in pair.items():
        close(ranked[name], value)
