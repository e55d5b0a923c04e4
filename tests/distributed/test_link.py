"""Messages between stages: several tensors, in order, without labels once their form is known."""

from __future__ import annotations

from types import SimpleNamespace

import pool
import pytest
import torch
import torch.distributed as dist

from llmfactory.core.errors import UserError
from llmfactory.parallel.link import Form, Link


def talk() -> tuple[int, list[torch.Tensor], bool]:
    """Both send two messages and answer; returns how many numbers were sent, and what came."""
    group = dist.group.WORLD
    assert group is not None
    link, rank = Link(group, torch.device("cpu")), dist.get_rank()
    sent: list[int] = []
    isend = dist.isend
    dist.isend = lambda tensor, *a, **k: (sent.append(tensor.numel()), isend(tensor, *a, **k))[1]
    received = []
    for number in range(3):
        tensors = [torch.arange(6.0).view(2, 3).T * rank + number, torch.tensor([number], dtype=torch.int32)]
        forms = [Form("x", (3, 2), torch.float32, True), Form("n", (1,), torch.int32, False)]
        link.tell(f"from {rank}", forms, 1 - rank)
        link.send(tensors, 1 - rank)
        told = link.ask(f"from {1 - rank}", 1 - rank)
        assert told == forms
        received += link.receive(told, 1 - rank).wait()
    link.finish()
    try:
        link.tell(f"from {rank}", forms[:1], 1 - rank)
    except RuntimeError as error:
        return sum(sent), received, "cannot agree" in str(error)
    return sum(sent), received, False


@pytest.mark.dist
def test_what_is_sent_arrives() -> None:
    results = pool.run(2, talk, alone=True)
    for rank, (sent, received, disagreed) in enumerate(results):
        assert sent == 4096 + 3 * (6 + 1)
        assert disagreed
        for number in range(3):
            x, n = received[2 * number : 2 * number + 2]
            assert torch.equal(x, torch.arange(6.0).view(2, 3).T * (1 - rank) + number)
            assert n.tolist() == [number]


def test_gpu_tensors_need_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_backend", lambda group: "gloo")
    with pytest.raises(UserError, match=r"parallel\.backend=nccl"):
        Link(SimpleNamespace(), torch.device("cuda"))  # type: ignore[arg-type]
