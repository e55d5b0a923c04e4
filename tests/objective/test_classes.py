"""Losses of the tasks against their definitions, and what is divided by."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.batch import IGNORE, split
from llmfactory.model.head.part import LinearHead
from llmfactory.objective.objective import Outputs
from llmfactory.objective.spec import Classify, Seq2seq, Span, Tag

B, T, D, C = 4, 6, 5, 3


class Head(LinearHead):
    """Speaks about the first token of each row where it is asked for documents."""

    def pool(self, hidden_BTD, segments_BT=None, documents=1):
        return hidden_BTD[:, :documents]


def case(outputs=C):
    make = torch.Generator().manual_seed(3)
    head = Head(outputs, D, 0.02, bias=True).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=make)
    hidden = torch.randn(B, T, D, generator=make, dtype=torch.float64)
    segments = torch.ones(B, T, dtype=torch.long)
    segments[1, 4:] = segments[2, 2:] = 0
    return Outputs(hidden, head), {"segments": segments}


def loss(objective, outputs, batch):
    (total, count) = objective(outputs, batch)["loss"]
    return total / count


def test_one_class_for_each_document():
    outputs, batch = case()
    batch["labels"] = torch.tensor([[2], [0], [1], [IGNORE]])
    logp = outputs.head(outputs.hidden[:, 0]).log_softmax(-1)
    want = -(logp[0, 2] + logp[1, 0] + logp[2, 1]) / 3
    torch.testing.assert_close(loss(Classify().build(), outputs, batch), want, rtol=1e-12, atol=0)


def test_smoothing():
    outputs, batch = case()
    batch["labels"] = torch.tensor([[2], [0], [1], [1]])
    logp = outputs.head(outputs.hidden[:, 0]).log_softmax(-1)
    hard = -logp[torch.arange(B), batch["labels"][:, 0]].mean()
    want = 0.7 * hard + 0.3 * -logp.mean()
    objective = Classify(label_smoothing=0.3).build()
    torch.testing.assert_close(loss(objective, outputs, batch), want, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(objective.plain(), outputs, batch), hard, rtol=1e-12, atol=0)


def test_one_class_for_each_word():
    outputs, batch = case()
    batch["labels"] = torch.full((B, T), IGNORE)
    batch["labels"][0, 1], batch["labels"][3, 5] = 2, 1
    logp = outputs.head(outputs.hidden).log_softmax(-1)
    want = -(logp[0, 1, 2] + logp[3, 5, 1]) / 2
    torch.testing.assert_close(loss(Tag().build(), outputs, batch), want, rtol=1e-12, atol=0)


def test_both_ends_of_an_answer():
    """The softmax is over the tokens of a row that are no padding."""
    outputs, batch = case(outputs=2)
    batch["labels"] = torch.tensor([[1, 3], [0, 0], [0, 1], [2, 5]])
    scores = outputs.head(outputs.hidden)
    want = torch.zeros((), dtype=torch.float64)
    for row in range(B):
        real = int(batch["segments"][row].sum())
        for end in range(2):
            want -= scores[row, :real, end].log_softmax(0)[batch["labels"][row, end]]
    torch.testing.assert_close(loss(Span().build(), outputs, batch), want / (2 * B), rtol=1e-12, atol=0)


def test_smoothing_of_texts():
    outputs, batch = case()
    batch["labels"] = torch.randint(C, (B, T), generator=torch.Generator().manual_seed(1))
    batch["labels"][0] = IGNORE
    logp = outputs.head(outputs.hidden).log_softmax(-1)[1:]
    hard = -logp.gather(-1, batch["labels"][1:, :, None]).mean()
    objective = Seq2seq(label_smoothing=0.2).build()
    torch.testing.assert_close(loss(objective, outputs, batch), 0.8 * hard - 0.2 * logp.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(objective.plain(), outputs, batch), hard, rtol=1e-12, atol=0)


@pytest.mark.parametrize("spec", [Classify(), Tag(), Span(), Seq2seq()])
def test_sums_and_denominators_add_up_over_micro_batches(spec):
    outputs, batch = case(outputs=2 if isinstance(spec, Span) else C)
    width = {Classify: 1, Span: 2}.get(type(spec), T)
    batch["labels"] = torch.randint(2, (B, width), generator=torch.Generator().manual_seed(1))
    objective = spec.build()
    whole, count = objective(outputs, batch)["loss"]
    pieces = list(split({**batch, "hidden": outputs.hidden}, 1))
    parts = [objective(Outputs(piece.pop("hidden"), outputs.head), piece)["loss"] for piece in pieces]
    torch.testing.assert_close(sum(total for total, _ in parts), whole, rtol=1e-12, atol=0)
    assert sum(int(number) for _, number in parts) == int(count) == int(objective.denominators(batch)["loss"])
