"""Rows of records with made-up hidden vectors: each row holds the answers of one record as documents, of uneven length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.model.head.scalar import ScalarHead
from llmfactory.model.head.spec import Pooling, Scalar
from llmfactory.objective.objective import Objective, Outputs

D = 5


def judged(sizes: list[list[int]], pooling: Pooling | None = Pooling.last) -> tuple[Outputs, dict[str, Tensor]]:
    """`sizes`: of each row, the tokens of each answer with its prompt; of one with a single token nothing is learned."""
    make = torch.Generator().manual_seed(5)
    width = max(map(sum, sizes)) + 2
    labels, segments = torch.full((len(sizes), width), IGNORE), torch.zeros(len(sizes), width, dtype=torch.long)
    for row, answers in enumerate(sizes):
        start = 0
        for number, size in enumerate(answers, start=1):
            segments[row, start : start + size] = number
            labels[row, start + 1 : start + size] = 7
            start += size
    head = ScalarHead(Scalar(pooling=pooling, bias=True), D, 0.02).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=make)
    hidden = torch.randn(len(sizes), width, D, generator=make, dtype=torch.float64, requires_grad=True)
    return Outputs(hidden, head), {"tokens": torch.zeros_like(labels), "labels": labels, "segments": segments}


def reward(outputs: Outputs, sizes: list[list[int]], row: int, answer: int) -> Tensor:
    """By hand: the head's number of the answer's last token."""
    return outputs.head(outputs.hidden[row, sum(sizes[row][: answer + 1]) - 1])[0]


def found(objective: Objective, outputs: Outputs, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each term divided by its denominator, which is a function of the batch alone."""
    terms, counts = objective(outputs, batch), objective.denominators(batch)
    assert set(terms) == set(counts) == {*objective.terms, *objective.watched}
    assert all(torch.equal(terms[name][1], count) for name, count in counts.items())
    return {name: total / count for name, (total, count) in terms.items()}


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def gradient(outputs: Outputs, loss: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, outputs.hidden, retain_graph=True)
    return found
