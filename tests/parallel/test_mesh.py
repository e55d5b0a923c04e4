"""A single process needs no process group."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from llmfactory.core.errors import UserError
from llmfactory.parallel.mesh import open_world
from llmfactory.parallel.spec import Backend, Mesh


def test_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with open_world(Mesh(dp_replicate=None), "cpu") as world:
        assert (world.rank, world.size, world.data_rank, world.data_size, world.dense) == (0, 1, 0, 1, None)
        assert not dist.is_initialized()
        assert world.sum_numbers([1.5, 2.0]) == [1.5, 2.0]
        assert world.sum_tensor(torch.ones(2)).tolist() == [1.0, 1.0]
        assert world.gather("a") == ["a"]
        assert world.broadcast("a") == "a"
        with pytest.raises(UserError, match="what the action said"):
            world.once(lambda: (_ for _ in ()).throw(UserError("what the action said")))


def test_a_layout_for_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with (
        pytest.raises(UserError, match=r"dp_replicate=4 x .* needs 4 processes, but 1 were started"),
        open_world(Mesh(dp_replicate=4), "cpu"),
    ):
        pass


def test_nccl_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="needs GPUs"), open_world(Mesh(dp_replicate=2, backend=Backend.nccl), "cpu"):
        pass
