"""The fast search finds what looking at every candidate finds; what it says of candidates is true."""

from __future__ import annotations

import random

import pytest

from llmfactory.core.sharding import Layout
from llmfactory.parallel.plan.accelerator import Machine
from llmfactory.parallel.plan.kept import Formats, Kept
from llmfactory.parallel.plan.measured import Speed
from llmfactory.parallel.plan.pieces import Piece, Weight, Where, Work
from llmfactory.parallel.plan.search import Question, every, search, splits
from llmfactory.parallel.spec import Mesh, Offload, Schedule


def some_work(rng: random.Random) -> Work:
    """A model of no family: layers of two matrices and some attention, an embedding and a head, tied or not."""
    dim, hidden, vocab = 64 * rng.randint(1, 16), 64 * rng.randint(1, 48), 64 * rng.randint(4, 64)
    heads, experts = rng.choice([2, 4, 8]), rng.choice([0, 0, 4])
    table = Weight("embedding", (vocab, dim), Layout.vocab)
    layers = []
    for number in range(rng.randint(1, 9)):
        weights = [
            Weight(f"{number}.q", (3 * dim, dim), Layout.column, unit=dim // heads),
            Weight(f"{number}.o", (dim, dim), Layout.row),
            Weight(f"{number}.norm", (dim,)),
        ]
        if experts:
            weights += [Weight(f"{number}.experts", (experts, hidden, dim), Layout.expert, hidden=1)]
        else:
            weights += [Weight(f"{number}.up", (hidden, dim), Layout.column), Weight(f"{number}.down", (dim, hidden), Layout.row)]
        layers.append(
            Piece(
                str(number),
                "layer",
                tuple(weights),
                cut_products=4 * dim * dim + 2 * dim * hidden,
                whole_products=rng.choice([0, dim]),
                pair_products=2 * dim,
                seen=0.5,
                kept=Kept(stream=20.0 * dim, inner=16.0 * dim + 8.0 * hidden, pairs=rng.choice([0.0, 4.0 * heads])),
                width=dim,
                joins=(dim, dim),
                keys=2 * dim,
                queries=dim,
                groups=heads,
                visits=2 if experts else 0,
            )
        )
    tied = rng.random() < 0.5
    first = Piece("embedding", weights=(table,), where=Where.rest, table=table, kept=Kept(stream=8.0), width=dim)
    own = () if tied else (Weight("head", (vocab, dim), Layout.vocab),)
    last = Piece("head", "", own, Where.head, (table,) if tied else (), cut_products=vocab * dim, width=dim)
    form = Formats(4, rng.choice([2, 4]), False)
    rows, length = 2 ** rng.randint(2, 4), 2 ** rng.randint(5, 9)
    return Work((first, *layers, last), rows, length, form, "bf16", 8.0, 4, vocab, 512)


def some_machine(rng: random.Random, work: Work) -> Machine:
    """Memory from a little of what the whole state needs to plenty; links and network from slow to fast."""
    return Machine(
        name="device",
        memory=16 * work.parameters * 2 ** rng.uniform(-3.5, 3.0),
        flops={"bf16": 10 ** rng.uniform(10, 14)},
        peak={"bf16": 1e15},
        memory_bandwidth=10 ** rng.uniform(10, 12),
        host_bandwidth=1e9,
        devices_per_node=rng.choice([2, 4, 8]),
        link=Speed(10 ** rng.uniform(-6, -4), 10 ** rng.uniform(8, 11)),
        network=Speed(10 ** rng.uniform(-6, -4), 10 ** rng.uniform(7, 10)),
        price_per_hour=None,
    )


def refuses(rng: random.Random) -> object:
    """Rules of no sense, so that the best on paper is often not allowed."""
    tp, pp, loss = rng.choice([1, 2, 99]), rng.choice([2, 4, 99]), rng.random() < 0.3

    def legal(mesh: Mesh, size: int) -> str | None:
        if mesh.tp == tp and mesh.pp == 1:
            return "no such degree"
        if mesh.pp == pp or (loss and mesh.loss_parallel):
            return "no such layout"
        return None

    return legal


@pytest.mark.parametrize("seed", range(200))
def test_the_fast_search_finds_the_optimum_of_all(seed: int) -> None:
    rng = random.Random(seed)
    work = some_work(rng)
    world = rng.choice([1, 2, 3, 4] if seed % 20 else [6, 8])
    experts = 4 if any(piece.visits for piece in work.pieces) else 0
    given = rng.choice([None, 1, 2])
    question = Question(work, some_machine(rng, work), world, Mesh(), given, experts)
    legal = refuses(rng)
    whole, fast = every(question, legal), search(question, legal)  # type: ignore[arg-type]
    if not whole.best:
        assert all(one.mesh.offload is Offload.cpu for one in fast.best.values())
        return
    best, found = whole.ranking[0], fast.ranking[0]
    assert found.seconds == pytest.approx(best.seconds, rel=1e-12)
    assert found.forecast.fits
    assert legal(found.mesh, found.micro_batch_size) is None  # type: ignore[operator]
    assert fast.looked_at <= whole.looked_at + 2 * len(list(splits(question)))


def test_offloading_is_the_last_resort() -> None:
    rng = random.Random(1)
    work = some_work(rng)
    tiny = some_machine(rng, work)
    small = Machine(**{**{name: getattr(tiny, name) for name in Machine.__slots__}, "memory": 13.5 * work.parameters})
    roomy = Machine(**{**{name: getattr(tiny, name) for name in Machine.__slots__}, "memory": 1e15})
    free = search(Question(work, roomy, 1, Mesh()), lambda mesh, size: None)
    assert free.ranking[0].mesh.offload is Offload.none
    tight = search(Question(work, small, 1, Mesh(), 1), lambda mesh, size: None)
    assert tight.ranking[0].mesh.offload is Offload.cpu
    assert tight.ranking[0].forecast.fullest.memory.host == (16 * work.parameters + 4 * len(work.weights))


def test_what_is_faster_on_paper_is_listed_with_its_reason() -> None:
    rng = random.Random(3)
    work = some_work(rng)
    machine = some_machine(rng, work)
    roomy = Machine(**{**{name: getattr(machine, name) for name in Machine.__slots__}, "memory": 1e15})
    free = search(Question(work, roomy, 4, Mesh(), 1), lambda mesh, size: None)
    first = free.ranking[0].mesh
    split = (first.pp, first.cp, first.tp, first.ep)

    def other(mesh: Mesh, size: int) -> str | None:
        return "not this one" if (mesh.pp, mesh.cp, mesh.tp, mesh.ep) == split else None

    second = search(Question(work, roomy, 4, Mesh(), 1), other)
    assert second.ranking[0].seconds == free.ranking[1].seconds
    assert next(one.rejected for one in second.refused) == "not this one"


def test_pipelines_are_given_micro_batches_enough() -> None:
    rng = random.Random(5)
    work = some_work(rng)
    found = every(Question(work, some_machine(rng, work), 4, Mesh()), lambda mesh, size: None)
    looked = [*found.best.values(), *found.rejected.values()]
    assert any(one.mesh.pp > 1 for one in looked)
    for one in looked:
        assert one.mesh.fills_pipeline(one.forecast.pace.micro_batches)
        assert one.mesh.schedule in Schedule
