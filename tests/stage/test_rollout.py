"""Answers as rows, and who draws what."""

from __future__ import annotations

from pathlib import Path

import torch
from toy_job import toy_job

from llmfactory.core.batch import IGNORE
from llmfactory.inference.sampler import Sampling
from llmfactory.model.initialize import initialize
from llmfactory.stage.rollout import Asked, Written, chosen, laid_out, write

END = 9


def test_labels_are_the_tokens_of_answers() -> None:
    """Also of one that ended at once, and of one that was cut off."""
    written = [Written([5, 6, END], True), Written([END], True), Written([7, 8], False)]
    batch = laid_out([[1, 2], [3], [4, 4, 4]], written, END)
    assert batch["tokens"].tolist() == [[1, 2, 5, 6], [3, END, END, END], [4, 4, 4, 7]]
    no = IGNORE
    assert batch["labels"].tolist() == [[no, 5, 6, END], [END, no, no, no], [no, no, 7, 8]]
    assert batch["segments"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 3]]


def test_rows_are_as_wide_as_the_longest_that_is_chosen() -> None:
    batch = laid_out([[1], [1, 2]], [Written([END], True), Written([5, 6, END], True)], END)
    assert chosen(batch, torch.tensor([0]))["tokens"].tolist() == [[1]]
    assert chosen(batch, torch.tensor([0]), 3)["tokens"].shape == (1, 3)
    assert chosen(batch, torch.tensor([1, 0]))["labels"].tolist() == [[IGNORE, 5, 6, END], [END, *[IGNORE] * 3]]


def test_an_answer_depends_on_its_number_alone(tmp_path: Path) -> None:
    """Not on who is asked beside it, nor on the order; two answers to a prompt, or to an equal one, have draws of their own."""
    model = toy_job(tmp_path).model.build().double()
    initialize(model, seed=0)
    options = {"max_tokens": 6, "sampling": Sampling(), "vocab_size": 257, "stop_ids": (256,), "seed": 3}
    asked = [Asked(number, tokens, [], {}) for number, tokens in ((0, [1, 2, 3]), (1, [4]), (2, [1, 2, 3]))]
    together = write(model, asked, 2, **options)  # type: ignore[arg-type]
    assert len({tuple(one.tokens) for one in together}) == 6
    for number, one in enumerate(asked):
        assert write(model, [one], 2, **options) == together[2 * number : 2 * number + 2]  # type: ignore[arg-type]
    assert write(model, asked[::-1], 1, **options) == together[::2][::-1]  # type: ignore[arg-type]
