"""Matrices cut over processes take the same steps: what `test_proofs.py` does not come to."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pool
import pytest
import torch
from test_every_graph import assert_same, job_of, train
from torch import Tensor, nn

from llmfactory.core.batch import IGNORE
from llmfactory.kernel.linear_cross_entropy import reference
from llmfactory.kernel.linear_log_probs import reference as plain_log_probs

LLAMA = ["model=llama_tiny", "model.n_layers=2", "model.dim=32", "model.attention.n_heads=4", "model.ffn.hidden=24"]
LAYOUTS: dict[str, tuple[int, list[str], list[str]]] = {
    "key/value heads shared by two": (
        4,
        ["model/attention=gqa", "model.attention.n_kv_heads=2"],
        ["parallel=tp", "parallel.tp=4"],
    ),
    "one key/value head": (2, ["model/attention=gqa", "model.attention.n_kv_heads=1"], ["parallel=tp_sp"]),
    "vocabulary that cannot be cut": (2, ["model.vocab_size=271"], ["parallel=tp", "parallel.sequence_parallel=true"]),
    "grid": (4, ["model.head.tied=false"], ["parallel=tp_summa"]),
    "grid, cut loss": (4, ["model=gpt2_tiny", "model.dropout=0"], ["parallel=tp_summa", "parallel.loss_parallel=true"]),
    "state on disk": (2, [], ["parallel=offload", "parallel.offload=disk"]),
}


@pytest.mark.dist
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_steps(name: str, tmp_path: Path) -> None:
    world, model, layout = LAYOUTS[name]
    case = [*LLAMA, *model] if "model=gpt2_tiny" not in model else model
    reference = train(job_of(case, tmp_path, "parallel.dp_replicate=1"), tmp_path / "one")
    many = ["parallel.dp_replicate=1", *layout, "launch=local", f"launch.processes={world}", "trainer.micro_batch_size=3"]
    for result in pool.run(world, train, job_of(case, tmp_path, *many), tmp_path / "many"):
        assert_same(result, reference)


# ---- the loss from cut logits

ROWS, WIDTH, VOCABULARY = 300, 6, 8
"""More rows than a chunk has."""


class Head(nn.Module):
    """What `cut_cross_entropy` asks of a head."""

    def __init__(self, weight: Tensor, bias: Tensor, softcap: float | None) -> None:
        super().__init__()
        self.weight, self.bias, self.softcap = nn.Parameter(weight), nn.Parameter(bias), softcap

    def features(self, hidden: Tensor) -> Tensor:
        return hidden


def numbers() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    labels = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    labels[::7] = IGNORE
    return SimpleNamespace(
        hidden=normal(ROWS, WIDTH),
        weight=normal(VOCABULARY, WIDTH),
        bias=normal(VOCABULARY),
        labels=labels,
        weights=normal(ROWS).abs(),
    )


def cut_loss(smoothing: float, softcap: float | None, z: float) -> list[Tensor]:
    """The loss, and the gradients of hidden vectors and of this process's rows, of a loss of which each process takes half."""
    import torch.distributed as dist

    from llmfactory.parallel import vocabulary

    group, n, rank = dist.group.WORLD, numbers(), int(os.environ["RANK"])
    assert group is not None
    own = slice(rank * VOCABULARY // 2, (rank + 1) * VOCABULARY // 2)
    head, hidden = Head(n.weight[own].clone(), n.bias[own].clone(), softcap), n.hidden.requires_grad_()
    loss = vocabulary.cut_cross_entropy(head, group, hidden, n.labels, n.weights, smoothing, z)  # type: ignore[arg-type]
    (loss / 2).backward()
    return [loss.detach(), hidden.grad, head.weight.grad, head.bias.grad]


@pytest.mark.dist
@pytest.mark.parametrize(("smoothing", "softcap", "z"), [(0.0, None, 0.0), (0.1, 3.0, 0.05)])
def test_loss_from_cut_logits(smoothing: float, softcap: float | None, z: float) -> None:
    n = numbers()
    leaves = [n.hidden.requires_grad_(), n.weight.requires_grad_(), n.bias.requires_grad_()]
    options: dict[str, Any] = {"label_smoothing": smoothing, "softcap": softcap, "z": z}
    loss = reference(n.hidden, n.weight, n.labels, bias_V=n.bias, weights=n.weights, **options)
    expected: list[Any] = torch.autograd.grad(loss, leaves)
    ranks = pool.run(2, cut_loss, smoothing, softcap, z)
    for rank in ranks:
        torch.testing.assert_close(rank[0], loss.detach(), rtol=1e-12, atol=0)
    for number, whole in enumerate(expected, start=1):
        pieces = [rank[number] for rank in ranks]
        found = pieces[0] + pieces[1] if number == 1 else torch.cat(pieces)  # gradients of copies are partial
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)


def cut_logps(softcap: float | None, entropy: bool) -> list[Tensor]:
    """Log-probabilities, entropies, and the gradients as above."""
    import torch.distributed as dist

    from llmfactory.parallel import vocabulary

    group, n, rank = dist.group.WORLD, numbers(), int(os.environ["RANK"])
    assert group is not None
    own = slice(rank * VOCABULARY // 2, (rank + 1) * VOCABULARY // 2)
    head, hidden = Head(n.weight[own].clone(), n.bias[own].clone(), softcap), n.hidden.requires_grad_()
    logps, entropies = vocabulary.cut_log_probs(head, group, hidden, n.labels.clamp(min=0), 0.7, entropy)  # type: ignore[arg-type]
    ((logps * n.weights).sum() / 2 + (entropies * n.weights[: len(entropies)].square()).sum() / 2).backward()
    return [logps.detach(), entropies.detach(), hidden.grad, head.weight.grad, head.bias.grad]


@pytest.mark.dist
@pytest.mark.parametrize(("softcap", "entropy"), [(None, False), (3.0, True)])
def test_log_probs_from_cut_logits(softcap: float | None, entropy: bool) -> None:
    n = numbers()
    leaves = [n.hidden.requires_grad_(), n.weight.requires_grad_(), n.bias.requires_grad_()]
    labels = n.labels.clamp(min=0)
    logps, entropies = plain_log_probs(n.hidden, n.weight, labels, bias_V=n.bias, softcap=softcap, temperature=0.7)
    total = (logps * n.weights).sum() + (entropies * n.weights.square()).sum() * entropy
    expected: list[Any] = torch.autograd.grad(total, leaves)
    ranks = pool.run(2, cut_logps, softcap, entropy)
    for rank in ranks:
        torch.testing.assert_close(rank[0], logps.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(rank[1], entropies.detach()[: ROWS * entropy], rtol=1e-12, atol=1e-13)
    for number, whole in enumerate(expected, start=2):
        pieces = [rank[number] for rank in ranks]
        found = pieces[0] + pieces[1] if number == 2 else torch.cat(pieces)  # gradients of copies are partial
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)


# ---- optimizer state in files


def mapped_state() -> tuple[int, list[Tensor]]:
    """How many mapped files an optimizer's state lies in, and the weights after three steps with it."""
    import tempfile

    from llmfactory.parallel.offload import keep_on_disk

    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    with tempfile.TemporaryDirectory() as folder:
        keep_on_disk(optimizer, Path(folder))
        files = Path("/proc/self/maps").read_text().count(f"{folder}/tensor-")
        assert not list(Path(folder).iterdir()), "files go with the process"
        for step in range(3):
            model(torch.full((2, 4), step + 1.0, dtype=torch.float64)).sum().backward()
            optimizer.step()
    return files, [weight.detach() for weight in model.parameters()]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_state_in_files(tmp_path: Path) -> None:
    files, weights = mapped_state()
    assert files == 4
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for step in range(3):
        model(torch.full((2, 4), step + 1.0, dtype=torch.float64)).sum().backward()
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))


def test_no_place_on_disk(tmp_path: Path) -> None:
    from llmfactory.core.errors import UserError
    from llmfactory.parallel.offload import keep_on_disk

    (tmp_path / "file").touch()
    optimizer = torch.optim.AdamW(nn.Linear(4, 3).parameters())
    with pytest.raises(UserError, match=r"parallel\.offload=disk: the optimizer's state cannot be kept"):
        keep_on_disk(optimizer, tmp_path / "file")
