"""Experts dealt to processes give what they give together: values, gradients of tokens and of matrices, in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import pool

from llmfactory.core.errors import UserError
from llmfactory.model.ffn.experts import Experts
from llmfactory.model.ffn.spec import Activation, Moe
from llmfactory.model.frame import Frame, Site
from llmfactory.model.norm.spec import RmsNorm
from llmfactory.model.position.spec import None_
from llmfactory.parallel.collectives import total
from llmfactory.parallel.expert import deal_experts, experts_of, placement
from llmfactory.parallel.mesh import World, open_world
from llmfactory.parallel.shard import reshard, shard
from llmfactory.parallel.spec import Mesh
from llmfactory.parallel.volume import counted

E, K, D, H = 4, 2, 6, 8
NAMES = ("gate", "up", "down")


def experts(gated: bool = True) -> Experts:
    spec = Moe(hidden=H, n_experts=E, k=K, activation=Activation.silu, gated=gated)
    frame = Frame(
        dim=D, n_layers=1, n_heads=1, head_dim=D, max_positions=8, std=0.1, out_std=0.1, causal=True, norm=RmsNorm().build
    )
    part = Experts(spec, Site(frame, 0, None_().build(frame)), K).double()
    torch.manual_seed(0)
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    return part


def rows_of(share: int, choice: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of one data-parallel process, their experts, and what their outputs count in the loss."""
    generator = torch.Generator().manual_seed(100 + share)
    count = 5 + 3 * share
    x_TD = torch.randn(count, D, dtype=torch.float64, generator=generator)
    experts_Tk = torch.rand(count, E, generator=generator).argsort(1)[:, :K]
    if choice == "the first two":  # nobody visits the others
        experts_Tk = torch.tensor([[1, 0]]).expand(count, K)
    elif choice == "the last":
        experts_Tk = torch.full((count, K), E - 1)
    return x_TD, experts_Tk, torch.randn(count * K, D, dtype=torch.float64, generator=generator)


def alone(shares: int, choice: str) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    part = experts()
    ys, xs = [], []
    for share in range(shares):
        x, chosen, counts = rows_of(share, choice)
        y = part(x.requires_grad_(), chosen)
        (y * counts).sum().backward()
        ys, xs = [*ys, y.detach()], [*xs, x.grad]
    return ys, xs, {name: part.get_parameter(name).grad for name in NAMES}


Found = tuple[int, Tensor, Tensor, dict[str, Tensor], list[int]]
"""Share, outputs, gradients of tokens and of whole matrices, and how much of the stack is here."""


def dealt(layout: Mesh, choices: tuple[str, ...]) -> dict[str, Found]:
    with open_world(layout, "cpu") as world:
        return {choice: step(world, choice) for choice in choices}


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = experts()

    def forward(self, x_TD: Tensor, experts_Tk: Tensor) -> Tensor:
        return self.experts(x_TD, experts_Tk)


def step(world: World, choice: str) -> Found:
    root = Root()
    deal_experts(root, world)
    meshes = [None if mesh is None else mesh["copies", "shards"] for mesh in (world.dense, world.sparse)]
    shard(root, meshes[0], experts=meshes[1])
    share = world.data_rank * world.degrees["cp"] + world.place("cp")
    x, chosen, counts = rows_of(share, choice)
    y = root(x.requires_grad_(), chosen)
    here = list(root.experts.up.shape)
    if "tp" in world.groups:
        y = total(y, world.groups["tp"])
    ((y * counts).sum() / world.degrees["tp"]).backward()
    x_grad = x.grad
    if "tp" in world.groups:
        dist.all_reduce(x_grad, group=world.groups["tp"])
    reshard(root)
    gradients = {name: root.experts._parameters[name].grad.full_tensor() for name in NAMES}
    return share, y.detach(), x_grad, gradients, here


LAYOUTS = {
    "ep2": (2, Mesh(dp_shard=2, ep=2), [2, H, D]),
    "ep2 of copies": (2, Mesh(dp_replicate=2, ep=2), [2, H, D]),
    "ep4": (4, Mesh(dp_shard=4, ep=4), [1, H, D]),
    "ep2 of 4": (4, Mesh(dp_shard=4, ep=2), [2, H, D]),
    "ep2 of 6, fewer experts than shards": (6, Mesh(dp_shard=6, ep=2), [2, H, D]),
    "ep4 over data and context": (4, Mesh(dp_shard=2, cp=2, ep=4), [1, H, D]),
    "tp2": (2, Mesh(tp=2), [4, H // 2, D]),
    "ep2 x tp2": (4, Mesh(dp_shard=2, ep=2, tp=2), [2, H // 2, D]),
}


@pytest.mark.dist
@pytest.mark.parametrize("case", LAYOUTS)
def test_the_same_values_and_gradients(case: str) -> None:
    """Also where some processes get no token at all."""
    world, layout, here = LAYOUTS[case]
    choices = ("any", "the first two", "the last") if case == "ep4" else ("any",)
    references = {choice: alone(world // layout.tp, choice) for choice in choices}
    for results in pool.run(world, dealt, layout, choices):
        for choice, (share, y, x_grad, found, shape) in results.items():
            ys, xs, gradients = references[choice]
            torch.testing.assert_close(y, ys[share], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(x_grad, xs[share], rtol=1e-12, atol=1e-12)
            assert shape == here
            for name in NAMES:
                torch.testing.assert_close(found[name], gradients[name], rtol=1e-12, atol=1e-12)


def messages(layout: Mesh, autocast: bool) -> tuple[int, list[tuple[str, float]], list[int]]:
    """Place in the group, what a step sends to other experts' processes and back, and how many of its visits go to each process."""
    with open_world(layout, "cpu") as world:
        part = experts()
        deal_experts(part, world)
        x, chosen, counts = rows_of(world.data_rank, "any")
        with counted() as volume:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = part(x.requires_grad_(), chosen)
            (y * counts).sum().backward()
        ranks = dist.get_process_group_ranks(world.groups["ep"])
        assert volume.select(ranks=ranks) == volume.messages
        visits = torch.bincount(chosen.flatten() * layout.ep // E, minlength=layout.ep).tolist()
        return world.place("ep"), [(str(one.dtype), one.sent) for one in volume.messages], visits


@pytest.mark.dist
@pytest.mark.parametrize(("autocast", "dtype"), [(False, torch.float64), (True, torch.bfloat16)])
def test_a_step_exchanges_counts_once_and_rows_four_times(autocast: bool, dtype: torch.dtype) -> None:
    """There and back, forward and backward; only visits to others' experts travel, in the format of the products."""
    results = sorted(pool.run(2, messages, Mesh(dp_shard=2, ep=2), autocast))
    away = [visits[1 - place] for place, _, visits in results]
    for place, sent, _ in results:
        row = D * dtype.itemsize
        there, back = away[place] * row, away[1 - place] * row
        assert [kind for kind, _ in sent] == ["torch.int32", *[str(dtype)] * 4]
        assert [size for _, size in sent] == pytest.approx([E // 2 * 4, there, back, there, back])


def refused(layout: Mesh) -> str:
    with pytest.raises(UserError) as caught, open_world(layout, "cpu") as world:
        deal_experts(nn.ModuleDict({"stack": experts()}), world)
    return str(caught.value)


@pytest.mark.dist
def test_what_cannot_be_dealt_evenly_is_named() -> None:
    assert pool.run(3, refused, Mesh(dp_shard=3, ep=3))[0] == "stack.gate has 4 experts, which 3 processes cannot share evenly"
    assert pool.run(3, refused, Mesh(dp_shard=3, ep=2))[0].startswith("parallel.ep=2 does not divide the 3 data- and context-")
    assert pool.run(3, refused, Mesh(tp=3))[0] == "stack.gate has 8 hidden units, which 3 processes cannot share evenly"


def test_a_single_process_keeps_its_experts() -> None:
    with open_world(Mesh(), "cpu") as world:
        part = experts()
        deal_experts(part, world)
        assert type(part) is Experts
        assert part.dispatch is None
        assert [name for name, _ in experts_of(nn.ModuleDict({"stack": part}))] == ["stack"]


@pytest.mark.parametrize(
    ("sizes", "shards", "dim"), [((4, 8, 6), 2, 0), ((1, 8, 6), 2, 1), ((2, 9, 6), 3, 1), ((2, 7, 6), 3, 2), ((2, 7, 5), 3, 0)]
)
def test_where_fsdp_cuts(sizes: tuple[int, ...], shards: int, dim: int) -> None:
    assert placement(torch.empty(sizes), shards).dim == dim
