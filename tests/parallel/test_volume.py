"""The counter of messages, operation by operation, and beneath FSDP2 and DTensor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import pool

from llmfactory.parallel import collectives
from llmfactory.parallel.volume import counted

pytestmark = pytest.mark.dist
BYTES = 4
"""Of a float32."""


def operations() -> dict[str, tuple[str, float, int]]:
    """(operation, bytes sent, messages) of each way to ask for one, by three processes."""
    rank, world = dist.get_rank(), dist.group.WORLD
    functional = torch.ops._c10d_functional
    wait = functional.wait_tensor
    pieces = [torch.ones(2) for _ in range(3)]
    gathered, scattered = getattr(dist, "all_gather_single", None), getattr(dist, "reduce_scatter_single", None)
    ask = {
        "all_reduce": lambda: dist.all_reduce(torch.ones(6)),
        "all_reduce, functional": lambda: wait(functional.all_reduce(torch.ones(6), "sum", world.group_name)),
        "all_gather": lambda: (gathered or dist.all_gather_into_tensor)(torch.empty(6), torch.ones(2)),
        "all_gather, list": lambda: dist.all_gather([torch.empty(2) for _ in range(3)], torch.ones(2)),
        "all_gather, functional": lambda: wait(functional.all_gather_into_tensor(torch.ones(2), 3, world.group_name)),
        "reduce_scatter": lambda: (scattered or dist.reduce_scatter_tensor)(torch.empty(2), torch.ones(6)),
        "reduce_scatter, functional": lambda: wait(functional.reduce_scatter_tensor(torch.ones(6), "sum", 3, world.group_name)),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty(6), torch.ones(6)),
        "all_to_all, uneven": lambda: dist.all_to_all_single(
            torch.empty(3 * (rank + 1)), torch.ones(6), [rank + 1] * 3, [1, 2, 3]
        ),
        "broadcast": lambda: dist.broadcast(torch.ones(6), 1),
        "reduce": lambda: dist.reduce(torch.ones(6), 1),
        "gather": lambda: dist.gather(torch.ones(2), pieces if rank == 1 else None, 1),
        "scatter": lambda: dist.scatter(torch.empty(2), pieces if rank == 1 else None, 1),
        "send": lambda: dist.send(torch.ones(6), (rank + 1) % 3) if rank != 2 else None,
        "ring": lambda: collectives.shifted(torch.ones(6), world),
        "barrier": lambda: dist.barrier(),
    }
    found = {}
    for name, do in ask.items():
        receiving = dist.irecv(torch.empty(6), (rank - 1) % 3) if name == "send" and rank != 0 else None
        with counted() as volume:
            do()
        if receiving is not None:
            receiving.wait()
        assert all(message.ranks == (0, 1, 2) and message.dtype == torch.float32 for message in volume.messages)
        found[name] = (",".join(message.operation for message in volume.messages), volume.sent() / BYTES, len(volume.messages))
    return found


def test_each_operation() -> None:
    for rank, found in enumerate(pool.run(3, operations)):
        whole, piece = 6, 2
        assert found["all_reduce"] == ("all_reduce", 2 * 2 / 3 * whole, 1)
        assert found["all_reduce, functional"] == found["all_reduce"]
        for name in ("all_gather", "all_gather, list", "all_gather, functional"):
            assert found[name] == ("all_gather", 2 * piece, 1)
        for name in ("reduce_scatter", "reduce_scatter, functional"):
            assert found[name] == ("reduce_scatter", pytest.approx(2 * piece), 1)
        assert found["all_to_all"] == ("all_to_all", pytest.approx(2 * piece), 1)
        assert found["all_to_all, uneven"] == ("all_to_all", pytest.approx(whole - (rank + 1)), 1)
        for name in ("broadcast", "reduce"):
            assert found[name] == (name, pytest.approx(2 / 3 * whole), 1)
        for name in ("gather", "scatter"):
            assert found[name] == (name, pytest.approx(2 / 3 * piece), 1)
        assert found["send"] == (("send", whole, 1) if rank != 2 else ("", 0, 0))
        assert found["ring"] == ("send", whole, 1), "what comes in is the sender's"
        assert found["barrier"] == ("", 0, 0)


def layers() -> tuple[float, float, float, float]:
    """Bytes of FSDP2's gathers and sums, and of a DTensor's and of our own collectives' forward and backward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh = init_device_mesh("cpu", (2,))
    model = fully_shard(nn.Linear(8, 4, bias=False), mesh=mesh, reshard_after_forward=True)
    model.set_gradient_divide_factor(1.0)
    model.set_force_sum_reduction_for_comms(True)
    with counted() as volume:
        model(torch.ones(3, 8)).sum().backward()
    gathers, sums = volume.sent("all_gather"), volume.sent("reduce_scatter")
    assert volume.sent() == gathers + sums
    with counted() as volume:
        DTensor.from_local(torch.ones(4, 4), mesh, [Shard(0)]).redistribute(mesh, [Replicate()])
    (message,) = volume.messages
    assert (message.operation, message.ranks) == ("all_gather", (0, 1))
    tensor = volume.sent()
    x = torch.ones(4, 4, requires_grad=True)
    with counted() as volume:
        collectives.scatter_total(x, 0, dist.group.WORLD).sum().backward()
    assert [one.operation for one in volume.select(ranks=(0, 1))] == ["reduce_scatter", "all_gather"]
    assert volume.select(ranks=(0,)) == volume.select(dtype=torch.float64) == []
    return gathers, sums, tensor, volume.sent()


def test_what_lies_upon_the_operations() -> None:
    for gathers, sums, tensor, ours in pool.run(2, layers):
        assert gathers == 2 * 16 * BYTES, "half of 32 weights, for the forward and for the backward pass"
        assert sums == 16 * BYTES
        assert tensor == 16 * BYTES
        assert ours == 2 * 8 * BYTES


def unknown() -> None:
    from llmfactory.parallel import volume

    volume.KINDS.pop("allreduce_")
    with pytest.raises(NotImplementedError, match="allreduce_ is not counted"), counted():
        dist.all_reduce(torch.ones(1))


def test_an_operation_that_is_not_known_is_not_passed_over() -> None:
    pool.run(1, unknown, alone=True)
