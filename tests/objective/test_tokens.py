"""Cross-entropy of tokens at some places: all objectives on text but ELECTRA's second term."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.batch import IGNORE
from llmfactory.model.head.part import LinearHead
from llmfactory.objective.objective import Outputs
from llmfactory.objective.spec import (
    BlankInfilling,
    Denoising,
    Masked,
    ObjectiveSpec,
    Permutation,
    Prefix,
    SpanCorruption,
    Ul2,
)

SPECS = [Prefix(), Masked(), SpanCorruption(), Ul2(), Denoising(), Permutation(), BlankInfilling()]
B, T, D, V = 4, 6, 5, 9


def case(empty: bool = False) -> tuple[Outputs, dict[str, torch.Tensor]]:
    make = torch.Generator().manual_seed(3)
    labels = torch.full((B, T), IGNORE) if empty else torch.randint(V, (B, T), generator=make)
    labels[0, 3:] = labels[2] = IGNORE
    hidden = torch.randn(B, T, D, generator=make, dtype=torch.float64).requires_grad_()
    head = LinearHead(V, D, 0.02, bias=True).double()
    torch.nn.init.normal_(head.weight, generator=make)
    return Outputs(hidden, head), {"labels": labels}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_the_mean_over_the_places_with_a_label(spec: ObjectiveSpec) -> None:
    objective = spec.build()
    outputs, batch = case()
    total, count = objective(outputs, batch)["loss"]
    expected = torch.nn.functional.cross_entropy(outputs.head(outputs.hidden).flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(total / count, expected)
    assert count == (batch["labels"] != IGNORE).sum() == objective.denominators(batch)["loss"]
    assert objective.plain() is objective
    assert not objective.likelihood, "neither perplexity nor bits per byte of the text follow from it"
    total.backward()
    grad = outputs.hidden.grad
    assert grad is not None
    assert not grad[batch["labels"] == IGNORE].any()
    assert grad[batch["labels"] != IGNORE].any(-1).all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_weights_of_labels(spec: ObjectiveSpec) -> None:
    outputs, batch = case()
    weights = torch.rand(B, T, generator=torch.Generator().manual_seed(4))
    total, count = spec.build()(outputs, {**batch, "weights": weights})["loss"]
    kept = batch["labels"] != IGNORE
    nll = -outputs.head(outputs.hidden).log_softmax(-1).gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(total, (nll * weights * kept).sum())
    torch.testing.assert_close(count, (weights.double() * kept).sum())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_a_micro_batch_without_labels_adds_nothing(spec: ObjectiveSpec) -> None:
    outputs, batch = case(empty=True)
    total, count = spec.build()(outputs, batch)["loss"]
    assert total == 0
    assert count == 0
    total.backward()
    assert outputs.hidden.grad is not None
    assert not outputs.hidden.grad.any()
