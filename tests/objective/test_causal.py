"""Next-token prediction against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch

from llmfactory.core.batch import IGNORE, split
from llmfactory.model.head.part import LinearHead
from llmfactory.objective.objective import Outputs
from llmfactory.objective.spec import Causal

B, T, D, V = 4, 6, 5, 9


def case(bias: bool = False) -> tuple[Outputs, dict[str, torch.Tensor]]:
    make = torch.Generator().manual_seed(3)
    head = LinearHead(V, D, 0.02, bias=bias).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, generator=make)
    labels = torch.randint(V, (B, T), generator=make)
    labels[0, 3:] = IGNORE
    labels[2] = IGNORE
    return Outputs(torch.randn(B, T, D, generator=make, dtype=torch.float64), head), {"labels": labels}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_mean_over_targets(bias: bool, smoothing: float) -> None:
    outputs, batch = case(bias)
    total, count = Causal(label_smoothing=smoothing).build()(outputs, batch)["loss"]
    logits = outputs.head(outputs.hidden).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(
        logits, batch["labels"].flatten(), label_smoothing=smoothing, ignore_index=IGNORE
    )
    assert count == B * T - 3 - T
    torch.testing.assert_close(total / count, expected)


def test_z_loss() -> None:
    """PaLM's: the squared logarithm of each token's normalizer; reports and comparisons do without."""
    outputs, batch = case()
    objective = Causal(z_loss=0.2).build()
    total, count = objective(outputs, batch)["loss"]
    plain, _ = Causal().build()(outputs, batch)["loss"]
    normalizers = outputs.head(outputs.hidden).logsumexp(-1)[batch["labels"] != IGNORE]
    torch.testing.assert_close(total, plain + 0.2 * normalizers.square().sum())
    torch.testing.assert_close(objective.plain()(outputs, batch)["loss"], (plain, count))


def test_weights_of_labels() -> None:
    outputs, batch = case()
    weights = torch.rand(B, T, generator=torch.Generator().manual_seed(4))
    total, count = Causal().build()(outputs, {**batch, "weights": weights})["loss"]
    logp = outputs.head(outputs.hidden).log_softmax(-1)
    kept = batch["labels"] != IGNORE
    nll = -logp.gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(total, (nll * weights * kept).sum())
    torch.testing.assert_close(count, (weights.double() * kept).sum())


def test_sums_and_denominators_add_up_over_micro_batches() -> None:
    objective = Causal().build()
    outputs, batch = case()
    batch["weights"] = torch.rand(B, T, generator=torch.Generator().manual_seed(5))
    whole = objective(outputs, batch)["loss"]
    cut = [Outputs(outputs.hidden[i : i + 1], outputs.head) for i in range(B)]
    parts = [objective(one, piece)["loss"] for one, piece in zip(cut, split(batch, 1), strict=True)]
    torch.testing.assert_close(sum(total for total, _ in parts), whole[0])
    torch.testing.assert_close(sum(count for _, count in parts), whole[1])


def test_denominators_need_the_batch_alone() -> None:
    objective = Causal().build()
    outputs, batch = case()
    assert objective.denominators(batch).keys() == set(objective.terms) == objective(outputs, batch).keys()
    assert objective.denominators(batch)["loss"] == objective(outputs, batch)["loss"][1]
