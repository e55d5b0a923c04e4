"""The pretraining stage: what it counts, what it decays, and that packing documents changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from toy_job import filled, toy_job

from llmfactory.core.batch import IGNORE
from llmfactory.model.ffn.spec import Activation, Moe
from llmfactory.run.fit import build_stage
from llmfactory.stage.training import TrainingStage

Batch = dict[str, torch.Tensor]

LENGTHS = [5, 9, 2, 16, 1, 7, 8]
"""Documents of uneven lengths; 5 + 9 + 2, 16 and 1 + 7 + 8 fill rows of 16."""


def row(lengths: list[int], first: int) -> Batch:
    """A row of 16 with these documents, numbered from `first`, then padding."""
    make = {"tokens": [], "labels": [], "positions": [], "segments": []}
    for number, length in enumerate(lengths, start=1):
        text = torch.randint(256, (length + 1,), generator=torch.Generator().manual_seed(first + number)).tolist()
        make["tokens"] += text[:-1]
        make["labels"] += text[1:]
        make["positions"] += range(length)
        make["segments"] += [number] * length
    pad = 16 - sum(lengths)
    for name, value in (("tokens", 0), ("labels", IGNORE), ("positions", 0), ("segments", 0)):
        make[name] += [value] * pad
    return {name: torch.tensor([values]) for name, values in make.items()}


def join(rows: list[Batch]) -> Batch:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture
def stage(tmp_path: Path) -> TrainingStage:
    stage = filled(build_stage(toy_job(tmp_path), isolated=True))
    stage.root.double()
    return stage


def step(stage: TrainingStage, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    stage.zero_grad()
    loss = stage.root(batch)["loss"] / stage.count(batch)["loss"]
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in stage.parameters()]


def test_packed_rows_are_rows_of_one_document_each(stage: TrainingStage) -> None:
    """The same loss and gradients for documents of uneven lengths in three full rows or in seven padded ones."""
    packed = join([row([5, 9, 2], 0), row([16], 3), row([1, 7, 8], 4)])
    single = join([row([length], number) for number, length in enumerate(LENGTHS)])
    assert stage.count(packed) == stage.count(single) == {"loss": 48.0, "tokens": 48.0}
    (loss, gradients), (other, others) = step(stage, packed), step(stage, single)
    torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-15)


def test_padding_on_the_left_changes_nothing(stage: TrainingStage) -> None:
    right = row([5], 0)
    left = {name: values.roll(11, dims=1) for name, values in right.items()}
    (loss, gradients), (other, others) = step(stage, right), step(stage, left)
    torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-15)


def test_weights_count(stage: TrainingStage) -> None:
    batch = {**row([16], 0), "weights": torch.full((1, 16), 0.25)}
    assert stage.count(batch) == {"loss": 4.0, "tokens": 16.0}


def test_losses_of_experts_are_means_over_tokens_in_training_alone(tmp_path: Path) -> None:
    experts = Moe(hidden=8, n_experts=3, k=1, activation=Activation.silu, gated=True, balance=1.0)
    stage = filled(build_stage(toy_job(tmp_path, model__ffn=experts), isolated=True))
    batch = row([5, 4], 0)  # nine tokens and seven of padding
    assert stage.count(batch) == {"loss": 9.0, "balance": 9.0, "tokens": 9.0}
    sums = stage.root.train()(batch)
    layers = stage.model.spec.n_layers
    assert sums.keys() == {"loss", "balance"}
    assert 0.9 * layers < float(sums["balance"].detach()) / 9.0 < 3 * layers  # 1 a layer where all experts are visited alike
    assert stage.root.eval()(batch).keys() == {"loss"}


def test_norms_and_biases_are_not_decayed(stage: TrainingStage) -> None:
    decayed, kept = stage.configure_optimizers().param_groups
    names = {id(parameter): name for name, parameter in stage.model.named_parameters()}
    assert {names[id(parameter)].split(".")[-2] for parameter in kept["params"]} == {"attention_norm", "ffn_norm", "norm"}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_learning_rate(stage: TrainingStage) -> None:
    assert [stage.lr_at(step) for step in (0, 1, 40)] == pytest.approx([0.005, 0.01, 0.001])
