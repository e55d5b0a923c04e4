"""Optimizer state in files of a disk; numbers and resume: `tests/distributed`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from llmfactory.core.errors import UserError
from llmfactory.parallel.offload import keep_on_disk


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system does not reserve space")
def test_a_full_disk_is_said_before_the_first_step(tmp_path: Path, monkeypatch) -> None:
    """And leaves no file."""

    def full(*given: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    optimizer = torch.optim.AdamW(nn.Linear(4, 3).parameters())
    with pytest.raises(UserError, match=r"kept in .*: the disk is full; name another folder with parallel\.offload_dir"):
        keep_on_disk(optimizer, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fused", [False, True])
def test_state_that_is_there_keeps_its_numbers(tmp_path: Path, fused: bool) -> None:
    """A run that goes on: what a checkpoint gave is moved, not made anew; the numbers of later steps are those of memory."""
    found = []
    for on_disk in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        for step in range(4):
            if on_disk and step == 2:
                before = {key: value.clone() for key, value in optimizer.state[model.weight].items()}
                keep_on_disk(optimizer, tmp_path)
                after = optimizer.state[model.weight]
                assert all(torch.equal(value, after[key]) for key, value in before.items())
                assert after["exp_avg"].data_ptr() != before["exp_avg"].data_ptr()
            model(torch.full((2, 4), step + 1.0, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_nothing_but_the_optimizer_writes(tmp_path: Path) -> None:
    """A file has no name any more, so that a killed process leaves nothing."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    keep_on_disk(optimizer, tmp_path / "deep" / "folder")
    assert not list((tmp_path / "deep" / "folder").iterdir())
    assert set(optimizer.state) == set(model.parameters())
