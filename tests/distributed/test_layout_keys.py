"""Every key of a layout changes what processes do: the messages that they send, or what they compute or keep.

That the steps stay the same, other tests show; these show that a key does not do nothing.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pool
import pytest
from test_every_graph import CASES, job_of, train

SMALL = ["model=llama_tiny", "model.n_layers=2", "model.dim=16", "model.attention.n_heads=4", "model.ffn.hidden=24"]
MICRO = "trainer.micro_batch_size=1"
# key -> (processes, model, one layout, the other)
PAIRS: dict[str, tuple[int, list[str], list[str], list[str]]] = {
    "dp_shard": (2, SMALL, ["parallel=zero1"], ["parallel=ddp", "parallel.dp_replicate=null"]),
    "zero: optimizer": (2, SMALL, ["parallel=zero1", MICRO], ["parallel=zero2", MICRO]),
    "zero: gradients": (2, SMALL, ["parallel=zero2", MICRO], ["parallel=zero3", MICRO]),
    "tp": (2, SMALL, ["parallel=tp"], ["parallel=ddp", "parallel.dp_replicate=null"]),
    "sequence_parallel": (2, SMALL, ["parallel=tp"], ["parallel=tp", "parallel.sequence_parallel=true"]),
    "loss_parallel": (2, SMALL, ["parallel=tp"], ["parallel=tp", "parallel.loss_parallel=true"]),
    "tensor_form": (4, SMALL, ["parallel=tp", "parallel.tp=4"], ["parallel=tp_summa"]),
    "ep": (2, CASES["mixture"], ["parallel=ep"], ["parallel=zero3"]),
    "recompute": (
        2,
        SMALL,
        ["parallel=ddp", "parallel.dp_replicate=null"],
        ["parallel=ddp", "parallel.dp_replicate=null", "parallel.recompute=true"],
    ),
}


def work(jobs: list[Any], folder: Path) -> list[tuple[Counter[Any], int]]:
    """Of each job: its messages, and how often attention was computed."""
    from llmfactory.model.attention import gqa
    from llmfactory.parallel.volume import counted

    calls, attend = 0, gqa.attend

    def counting(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        return attend(*arguments, **settings)

    gqa.attend = counting
    found = []
    for number, job in enumerate(jobs):
        calls = 0
        with counted() as volume:
            train(job, folder / str(number))
        found.append((Counter((one.operation, one.ranks, round(one.sent)) for one in volume.messages), calls))
    gqa.attend = attend
    return found


@pytest.mark.dist
@pytest.mark.parametrize("key", PAIRS)
def test_it_does_something(key: str, tmp_path: Path) -> None:
    world, model, *layouts = PAIRS[key]
    common = [
        "parallel.dp_replicate=1",
        "trainer.max_steps=1",
        "trainer.batch_size=4",
        "launch=local",
        f"launch.processes={world}",
    ]
    jobs = [job_of(model, tmp_path, *common, *layout) for layout in layouts]
    (one, one_calls), (other, other_calls) = pool.run(world, work, jobs, tmp_path)[0]
    if key == "recompute":
        assert one == other
        assert other_calls > one_calls
    else:
        assert one != other


def policy() -> bool:
    from torch import nn
    from torch.distributed.fsdp import CPUOffloadPolicy

    from llmfactory.parallel.mesh import open_world
    from llmfactory.parallel.shard import shard
    from llmfactory.parallel.spec import Mesh, Offload

    with open_world(Mesh(dp_shard=None), "cpu") as world:
        assert world.dense is not None
        root = nn.Sequential(nn.Linear(2, 2))
        shard(root, world.dense["copies", "shards"], offload=Offload.cpu)
        return isinstance(root._get_fsdp_state()._fsdp_param_group.offload_policy, CPUOffloadPolicy)  # type: ignore[operator]


@pytest.mark.dist
def test_weights_live_on_the_host() -> None:
    assert all(pool.run(2, policy))
