"""Scores as rewards, of one answer a row and of several."""

from __future__ import annotations

import pytest
import torch
from judged import close, found, gradient, judged, reward

from llmfactory.core.errors import ConfigError
from llmfactory.objective.spec import Regression

NAN = float("nan")


def test_one_answer_a_row():
    sizes = [[4], [2], [5], [1]]
    outputs, batch = judged(sizes)
    batch["score"] = torch.tensor([7.0, NAN, 3.0, 5.0])
    r = [reward(outputs, sizes, row, 0) for row in range(3)]
    ours = found(Regression(offset=5.0, scale=2.0).build(), outputs, batch)
    want = ((r[0] - 1.0) ** 2 + (r[2] + 1.0) ** 2) / 2
    close(ours["loss"], want)
    close(gradient(outputs, ours["loss"]), gradient(outputs, want))
    close(ours["error"], ((r[0] - 1.0).abs() + (r[2] + 1.0).abs()) / 2)
    close(ours["reward"], (r[0] + r[2]) / 2)


def test_several_answers_a_row():
    sizes = [[4, 2, 3], [2, 3, 1]]
    outputs, batch = judged(sizes)
    batch["scores"] = torch.tensor([[2.0, NAN, 1.0], [0.5, 0.0, NAN]])
    errors = [
        reward(outputs, sizes, row, number) - score for row, number, score in ((0, 0, 2.0), (0, 2, 1.0), (1, 0, 0.5), (1, 1, 0.0))
    ]
    close(found(Regression().build(), outputs, batch)["loss"], torch.stack(errors).square().mean())


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="scale = 0"):
        Regression(scale=0.0)
