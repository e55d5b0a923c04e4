"""Judged answers: the loss against the paper's equation, and the survey of a whole step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compared import Case, compared
from judged import close, found, gradient
from torch import Tensor

from llmfactory.core.batch import IGNORE, SURVEY
from llmfactory.core.context import CausalMask, Context
from llmfactory.objective.objective import Outputs
from llmfactory.objective.preference_spec import Kto, Reference

SIZES = [(3, [4]), (1, [5]), (2, [3]), (4, [1]), (2, [6])]
LABELS = torch.tensor([1, 0, 1, 1, 0])


def case(gap: float = 3.0, rows: float = 4.0, sizes: list[tuple[int, list[int]]] = SIZES) -> tuple[Case, Tensor]:
    """And what the reference says of the answers."""
    made, make = compared(sizes), torch.Generator().manual_seed(2)
    known = made.sums().detach()[:, 0] + 4 * torch.randn(len(sizes), generator=make, dtype=torch.float64)
    made.batch |= {"label": LABELS[: len(sizes)], "reference_logps": torch.stack((known, torch.zeros_like(known)), 1)}
    made.batch[SURVEY] = torch.tensor([[gap, rows]], dtype=torch.float64).expand(len(sizes), 2)
    return made, known


@pytest.mark.parametrize("gap", [3.0, -2.0])
def test_the_loss_is_the_papers(gap: float) -> None:
    made, known = case(gap)
    spec = Kto(beta=0.3, wanted=1.2, unwanted=0.7)
    objective = spec.build(Reference.precomputed)
    values = found(objective, made.outputs, made.batch)
    r, z, wanted = made.sums()[:, 0] - known, max(0.0, gap / 4), LABELS == 1
    v = torch.where(wanted, 1.2 * torch.sigmoid(0.3 * (r - z)), 0.7 * torch.sigmoid(0.3 * (z - r)))
    theirs = (0.7 + 0.5 * wanted.double() - v).mean()  # lambda_y - v(x, y)
    close(values["loss"], theirs)
    close(gradient(made.outputs, values["loss"]), gradient(made.outputs, theirs))
    close(values["kl"], z)
    close(values["reward_wanted"], 0.3 * r[wanted].mean())
    close(values["reward_unwanted"], 0.3 * r[~wanted].mean())
    close(values["logp_unwanted"], made.sums()[:, 0][~wanted].mean())


class Told:
    """A model that says given vectors."""

    training = True

    def __init__(self, made: Case) -> None:
        self.hidden, self.head = made.outputs.hidden, made.outputs.head

    def __call__(self, tokens: Tensor, context: Context) -> Tensor:
        assert not self.training, "nothing is dropped in a survey"
        return self.hidden[: len(tokens)]

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode


def test_the_survey_is_the_sum_over_mismatched_answers() -> None:
    made, _ = case(sizes=[*SIZES, (1, [0])][:6])
    batch: dict[str, Any] = {f"other_{name}": made.batch[name] for name in ("tokens", "labels", "segments")}
    known = torch.arange(12, dtype=torch.float64).view(6, 2)
    objective, model = Kto().build(Reference.precomputed), Told(made)
    batch |= {"reference_logps": known, "labels": torch.full((6, 2), IGNORE)}
    rows = objective.surveyed(batch)
    context = Context(positions=rows["tokens"], mask=CausalMask(rows["tokens"].shape[1]))
    sums = objective.survey(model, rows, context)  # type: ignore[arg-type]
    ratios = torch.stack([row[0].sum() for row in made.logps[:5]]) - known[:5, 1]
    close(sums, torch.stack((ratios.sum(), torch.tensor(5.0, dtype=torch.float64))).detach())
    assert model.training
    assert not sums.requires_grad


def test_micro_batches_add_up_and_padding_counts_nothing() -> None:
    made, _ = case(sizes=SIZES)
    objective = Kto().build(Reference.precomputed)
    whole = objective(made.outputs, made.batch)
    made.batch["labels"][4] = IGNORE
    less = objective(made.outputs, made.batch)
    cuts = [slice(0, 2), slice(2, 5)]
    pieces = [
        objective(Outputs(made.outputs.hidden[cut], made.outputs.head), {name: field[cut] for name, field in made.batch.items()})
        for cut in cuts
    ]
    for name, (total, count) in less.items():
        close(sum(piece[name][0] for piece in pieces), total)
        assert sum(piece[name][1] for piece in pieces) == count
    assert (whole["loss"][1], less["loss"][1], less["reward_unwanted"][1]) == (5, 4, 1)
