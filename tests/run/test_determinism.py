"""Settings of the process during a run, and after it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from toy_job import toy_job, train

from llmfactory.core.errors import UserError
from llmfactory.parallel.mesh import device_type
from llmfactory.run.determinism import settings
from llmfactory.run.spec import Device, Trainer


def test_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), torch.get_num_threads()
    train(toy_job(tmp_path, trainer__max_steps=1, trainer__threads=2, data__held_out=0.0), tmp_path / "run")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:3] == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert before[3] == torch.get_num_threads()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("asked", "kind", "expected"), [(None, "cpu", True), (None, "cuda", False), (False, "cpu", False), (True, "cpu", True)]
)
def test_deterministic(asked: bool | None, kind: str, expected: bool) -> None:
    with pytest.raises(ZeroDivisionError), settings(Trainer(max_steps=1, batch_size=1, deterministic=asked), kind):
        assert torch.are_deterministic_algorithms_enabled() == expected
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()


def test_devices() -> None:
    assert device_type(Device.cpu) == "cpu"
    assert device_type(Device.auto) == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.device=cuda, but torch sees no GPU"):
        train(toy_job(tmp_path, trainer__device=Device.cuda), tmp_path / "run")
