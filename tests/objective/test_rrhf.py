"""Rankings: hinges between answers in the wrong order."""

from __future__ import annotations

import pytest
import torch
from compared import compared
from judged import close, found, gradient

from llmfactory.objective.preference_spec import Rrhf

SIZES = [(3, [4, 2, 3]), (1, [1, 5, 2]), (2, [3, 3, 0])]
SCORES = [[3.0, 1.0, 1.0], [float("nan")] * 3, [2.0, 2.0, float("nan")]]


@pytest.mark.parametrize("length_power", [1.0, 0.0])
def test_the_loss_is_the_papers(length_power: float) -> None:
    """Pair by pair; equal scores are no pair, without scores the order counts."""
    case = compared(SIZES)
    case.batch["scores"] = torch.tensor(SCORES)
    objective = Rrhf(weight=0.7, length_power=length_power).build()
    values = found(objective, case.outputs, case.batch)
    hinges, best, tokens, right, pairs = 0.0, 0.0, 0, 0, 0
    for row, scores in enumerate(SCORES):
        logps = [one.sum() / len(one) ** length_power for one in case.logps[row] if len(one)]
        for i in range(len(logps)):
            for j in range(i + 1, len(logps)):
                if scores[i] != scores[j]:
                    hinges = hinges + torch.clamp(logps[j] - logps[i], min=0)
                    right, pairs = right + int(logps[i] > logps[j]), pairs + 1
        best, tokens = best - case.logps[row][0].sum(), tokens + len(case.logps[row][0])
    close(values["order"], 0.7 * hinges / 3)
    close(values["nll"], best / tokens)
    close(values["accuracy"], right / pairs)
    ours = values["order"] + values["nll"]
    close(gradient(case.outputs, ours), gradient(case.outputs, 0.7 * hinges / 3 + best / tokens))


def test_rows_of_padding_count_nothing() -> None:
    case, more = compared(SIZES), compared([*SIZES, (1, [0, 0, 0])])
    case.batch["scores"], more.batch["scores"] = torch.tensor(SCORES), torch.tensor([*SCORES, [1.0, 0.0, -1.0]])
    more.outputs.hidden.data[:3] = case.outputs.hidden.data
    more.outputs.head.load_state_dict(case.outputs.head.state_dict())  # type: ignore[attr-defined]
    for (total, count), (other, same) in zip(
        Rrhf().build()(case.outputs, case.batch).values(), Rrhf().build()(more.outputs, more.batch).values(), strict=True
    ):
        close(other, total)
        assert count == same
