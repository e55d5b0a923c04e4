"""bfloat16 weights: what is narrowed, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_job import filled, prepared, toy_job, train, weights

from llmfactory.parallel.shard import add_gradients_in
from llmfactory.precision.bf16_true import bf16_true
from llmfactory.precision.spec import Bf16Mixed, Bf16True, Fp32, Rounding
from llmfactory.run.fit import build_stage


def test_weights_are_narrowed_and_tables_are_not() -> None:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.ones(2))
    model.tied = model.weight
    model.number = torch.nn.Parameter(torch.ones(2, dtype=torch.int32), requires_grad=False)
    model.register_buffer("table", torch.ones(2))
    bf16_true("cpu").convert_module(model)
    assert model.weight.dtype == torch.bfloat16
    assert model.tied is model.weight
    assert model.number.dtype == torch.int32
    assert model.table.dtype == torch.float32


def test_only_it_rounds_steps() -> None:
    assert [spec.rounding() for spec in (Fp32(), Bf16Mixed(), Bf16True(), Bf16True(keep=Rounding.master))] == [
        None,
        None,
        Rounding.stochastic,
        Rounding.master,
    ]


def test_what_is_computed_in_which_format(tmp_path: Path) -> None:
    """Over a forward and backward pass of a decoder. (Norms, softmax and routers have tests of their own in half precision.)"""
    job = toy_job(tmp_path, precision=Bf16True())
    stage = filled(build_stage(job, False))
    add_gradients_in(stage.root, job.precision.build("cpu").gradients)
    seen: set[torch.dtype] = set()
    for block in stage.model.blocks:
        block.register_forward_hook(lambda _, args, y: seen.update((args[0].dtype, y.dtype)))
    data = prepared(job)
    sums = stage.root(job.data.pack.build(data.train, job.data.seq_len).read(np.arange(2)))
    assert seen == {torch.bfloat16}
    assert sums["loss"].dtype == torch.float32
    sums["loss"].backward()
    assert {one.grad.dtype for one in stage.model.parameters()} == {torch.float32}


def test_micro_batches_are_added_up_in_float32() -> None:
    """256 gradients of 1 and one of 256: in bfloat16 each of the ones would be lost."""
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    root = torch.nn.Module()
    root.weight = weight
    add_gradients_in(root, torch.float32)
    for size in [256.0, *[1.0] * 255]:
        (weight * size).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == 511


@pytest.mark.parametrize("keep", [Rounding.stochastic, Rounding.compensated])
def test_steps_within_the_backward_pass_round_alike(keep: Rounding, tmp_path: Path) -> None:
    found = []
    for within in (False, True):
        few = {"trainer__eval_every": None, "trainer__save_every": None, "trainer__keep_best": False, "trainer__max_steps": 3}
        job = toy_job(tmp_path, precision=Bf16True(keep=keep), trainer__in_backward=within, optim__clip_norm=None, **few)
        found.append(weights(train(job, tmp_path / str(within))[0]))
    assert all(found[0][name].equal(found[1][name]) for name in found[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled(tmp_path: Path) -> None:
    """As near to the uncompiled run as another order of sums is: the compiler leaves out roundings between operations."""
    losses = []
    for compiled in (False, True):
        few = {"trainer__eval_every": None, "trainer__save_every": None, "trainer__keep_best": False, "trainer__max_steps": 3}
        job = toy_job(tmp_path, precision=Bf16True(), trainer__compile=compiled, **few)
        losses.append([row["loss"] for row in train(job, tmp_path / str(compiled))[1].rows.values()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
