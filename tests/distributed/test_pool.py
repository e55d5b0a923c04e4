"""The processes that tests share: what one function leaves behind, the next one does not find."""

from __future__ import annotations

import os

import pool
import pytest
import torch

from llmfactory.parallel import volume

pytestmark = pytest.mark.dist


def settings() -> tuple[torch.dtype, bool, int, bool, float, str | None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    drawn = torch.rand(()).item()
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        deterministic,
        drawn,
        os.environ.get("LEFT"),
    )


def upset() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(7)
    os.environ["LEFT"] = "behind"


def exchange() -> None:
    volume.counted = lambda: None  # type: ignore[assignment]


def test_settings_are_put_back() -> None:
    before = pool.run(1, settings)
    pool.run(1, upset)
    assert pool.run(1, settings) == before


def test_an_exchanged_function_is_an_error_that_names_it() -> None:
    with pytest.raises(AssertionError, match=r"exchange leaves .* must run alone: llmfactory.parallel.volume.counted"):
        pool.run(1, exchange)
    pool.run(1, exchange, alone=True)


def test_a_crew_whose_processes_were_ended_is_made_anew() -> None:
    pool.run(1, settings)
    for process in pool._kept[1]._processes:
        process.kill()
        process.join()
    assert len(pool.run(1, settings)) == 1
