"""Attention of rows that are cut along their length equals attention of whole rows: results and all gradients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from llmfactory.config.compose import compose_job
from llmfactory.core.context import (
    CausalMask,
    Context,
    DocumentMask,
    FullMask,
    Mask,
    PermutationMask,
    PrefixMask,
    SegmentMask,
    Source,
    StreamsMask,
)
from llmfactory.core.errors import UserError
from llmfactory.kernel.attention import attend, plain
from llmfactory.model.attention import reference
from llmfactory.model.initialize import initialize
from llmfactory.parallel import ring
from llmfactory.parallel.context import MASKS, Columns, ContextCut, RowPieces, padded
from llmfactory.parallel.spec import ContextMethod
from llmfactory.parallel.volume import counted

sys.path.append(str(Path(__file__).parents[1] / "distributed"))
import pool

B, T, M, H, D, E = 2, 16, 8, 4, 3, 5
Case = tuple[Mask, int, int, int | None, dict[str, Any]]
"""Mask, length of the keys, key/value heads, rows of a bias, further arguments."""


def cases() -> dict[str, Case]:
    segments = torch.tensor([[1] * 5 + [2] * 7 + [0] * 4, [0] * 1 + [1] * 2 + [2] * 13])
    sources = torch.tensor([[1] * 3 + [2] * 3 + [0] * 2, [0] + [1] * 2 + [2] * 5])
    prefix = torch.tensor([[1] * 3 + [0] * 2 + [1] * 6 + [0] * 5, [0] * 3 + [1] * 9 + [0] * 4])
    places = torch.tensor([[0, 2, 1, 3, 0, 1, 0, 0] * 2, [0, 0, 4, 1, 3, 0, 2, 0] * 2])
    content, query = (PermutationMask(places, segments, strict=strict) for strict in (False, True))
    documents = DocumentMask(segments)
    return {
        "causal": (CausalMask(T), T, H, None, {}),
        "documents": (documents, T, H, None, {}),
        "prefix": (PrefixMask(prefix, segments), T, H, None, {"scale": 1.0}),
        "full": (FullMask(T), T, H, None, {}),
        "segments": (SegmentMask(segments), T, H, None, {}),
        "grouped": (CausalMask(T), T, 2, None, {}),
        "one key head, documents": (documents, T, 1, None, {}),
        "window": (CausalMask(T), T, 2, None, {"window": 3}),
        "window, documents, bias": (documents, T, H, 1, {"window": 5}),
        "window both ways": (FullMask(T), T, H, None, {"window": 4}),
        "window, segments": (SegmentMask(segments), T, H, None, {"window": 4}),
        "softcap, bias, grouped": (documents, T, 2, B, {"softcap": 1.5, "window": 7}),
        "one bias for all rows": (CausalMask(T), T, H, 1, {}),
        "bias of each row": (SegmentMask(segments), T, H, B, {}),
        "cross": (FullMask(), M, H, None, {}),
        "cross, documents": (SegmentMask(segments, sources), M, H, None, {}),
        "streams": (StreamsMask(content, query, T), T, H, B, {}),
        "a query that sees nothing": (SegmentMask(segments + 1, sources), M, 2, None, {}),
    }


def compared() -> Iterator[tuple[str, Tensor, Tensor]]:
    """What comes out cut and whole, of every method and case, on this process."""
    group = dist.group.WORLD
    assert group is not None
    rank, size = group.rank(), group.size()
    for method in ContextMethod:
        for case, (whole, keys, groups, biased, options) in cases().items():
            make = torch.Generator().manual_seed(1)
            shapes = {"q": (B, H, T * whole.streams, D), "k": (B, groups, keys, D), "v": (B, groups, keys, E)}
            if biased is not None:
                shapes["bias"] = (biased, H, T * whole.streams, keys)
            full = {name: torch.randn(shape, generator=make, dtype=torch.float64) for name, shape in shapes.items()}
            weight = torch.randn(B, H, T * whole.streams, E, generator=make, dtype=torch.float64)
            of_queries, of_keys = Columns(T, size, whole.streams), Columns(keys, size)
            mask = MASKS[method](whole, group, of_queries, of_keys)
            columns = {"k": of_keys, "v": of_keys}
            own = {name: columns.get(name, of_queries).own(x, 2, rank).requires_grad_() for name, x in full.items()}
            y = attend(own["q"], own["k"], own["v"], mask, own.get("bias"), **options)
            (y * of_queries.own(weight, 2, rank)).sum().backward()
            for x in full.values():
                x.requires_grad_()
            seen = whole.dense()
            if seen is not None and not seen.any(-1).all():  # queries that see nothing have no softmax
                y_whole = plain(full["q"], full["k"], full["v"], seen, full.get("bias"), None, None, 0.0)
            else:
                y_whole = reference.attend(full["q"], full["k"], full["v"], whole, full.get("bias"), **options)
            (y_whole * weight).sum().backward()
            yield f"{method.name}: {case}", y, of_queries.own(y_whole, 2, rank)
            for name, x in full.items():
                yield f"{method.name}: {case}: {name}", own[name].grad, columns.get(name, of_queries).own(x.grad, 2, rank)


def differences(block: int) -> dict[str, float]:
    ring.BLOCK = block
    return {name: (ours - theirs).abs().max().item() for name, ours, theirs in compared()}


@pytest.mark.dist
@pytest.mark.parametrize(("world", "block"), [(2, 1024), (4, 1024), (2, 3)])
def test_equals_whole_rows(world: int, block: int) -> None:
    for found in pool.run(world, differences, block, alone=True):
        assert len(found) == 3 * (len(cases()) * 4 + 5)
        for name, difference in found.items():
            assert difference < 1e-12, name


class Place:
    """A group's rank and size."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = (lambda: rank), (lambda: size)


def test_columns() -> None:
    columns = Columns(12, 3)
    assert [columns.of(rank) for rank in range(3)] == [
        [slice(0, 2), slice(10, 12)],
        [slice(2, 4), slice(8, 10)],
        [slice(4, 6), slice(6, 8)],
    ]
    x = torch.arange(24).view(2, 12)
    parts = torch.cat([columns.own(x, 1, rank) for rank in range(3)], 1)
    assert torch.equal(columns.dealt(x, 1), parts)
    assert torch.equal(columns.joined(parts, 1), x)
    both = Columns(4, 2, streams=2)
    assert both.of(1) == [slice(1, 2), slice(2, 3), slice(5, 6), slice(6, 7)]
    assert torch.equal(both.joined(both.dealt(x[:1, :8], 1), 1), x[:1, :8])
    with pytest.raises(ValueError, match="cannot be cut"):
        Columns(10, 3)


@pytest.mark.parametrize("size", [2, 3])
def test_a_causal_ring_is_balanced(size: int) -> None:
    """In each step all processes compute as many blocks, and no more than the mask leaves."""
    keys = [Columns(8 * size, size).of(rank) for rank in range(size)]
    for mask in (CausalMask(8 * size), DocumentMask(torch.ones(1, 8 * size, dtype=torch.long))):
        counts = [[0] * size for _ in range(size)]
        for rank in range(size):
            round = ring.Round(mask, keys[rank], keys, Place(rank, size), 1.0, None, None)
            for step, (source, is_last) in enumerate(round.sources()):
                counts[rank][step] = len(list(round.tiles(source)))
                assert is_last == (step == size - 1)
        assert counts == [[3] + [2] * (size - 1)] * size
    round = ring.Round(CausalMask(8 * size), keys[0], keys, Place(0, size), 1.0, 2, None)
    assert len(list(round.tiles(size - 1))) == (1 if size == 2 else 0), "a window leaves neighbours"


def halves() -> tuple[torch.dtype, float, float]:
    """Largest differences of the ring's results and gradients in bfloat16, to those of the same numbers in float64."""
    group = dist.group.WORLD
    assert group is not None
    make = torch.Generator().manual_seed(2)
    columns, mask = Columns(64, 2), CausalMask(64)
    full = [torch.randn(1, 2, 64, 8, generator=make).bfloat16() for _ in range(3)]
    own = [columns.own(x, 2, group.rank()).requires_grad_() for x in full]
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(*own, MASKS[ContextMethod.ring](mask, group, columns, columns))
    y.sum().backward()
    wide = [x.double().requires_grad_() for x in full]
    y_whole = attend(*wide, mask)
    y_whole.sum().backward()
    pairs = [(one.grad, columns.own(other.grad, 2, group.rank())) for one, other in zip(own, wide, strict=True)]
    worst = max(((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in pairs[1:])
    return y.dtype, (y - columns.own(y_whole, 2, group.rank())).abs().max().item(), worst


@pytest.mark.dist
def test_half_precision_is_summed_in_float32() -> None:
    for dtype, difference, worst in pool.run(2, halves):
        assert dtype is torch.bfloat16
        assert difference < 2**-8  # of numbers up to 2, rounded once
        assert worst < 2**-7


def dropped() -> list[tuple[float, float]]:
    """Mean and deviation of the sums of what is left of the probabilities, of the methods that drop some."""
    group = dist.group.WORLD
    assert group is not None
    torch.manual_seed(group.rank())
    columns, found = Columns(256, 2), []
    q, k, v = torch.zeros(4, 2, 128, 8), torch.zeros(4, 2, 128, 8), torch.ones(4, 2, 128, 1)
    for method in ContextMethod:
        mask = MASKS[method](FullMask(256), group, columns, columns)
        if method is ContextMethod.ring:
            with pytest.raises(ValueError, match="dropped"):
                attend(q, k, v, mask, dropout=0.5)
            continue
        y = attend(q, k, v, mask, dropout=0.5)
        found.append((y.mean().item(), y.std().item()))
    return found


@pytest.mark.dist
def test_probabilities_are_dropped() -> None:
    """Of 256 equal ones half is left, each twice as large: the sum is 1 on average and deviates by 1 / sqrt(256)."""
    for found in pool.run(2, dropped):
        for mean, deviation in found:
            assert mean == pytest.approx(1.0, abs=0.01)
            assert deviation == pytest.approx(1 / 16, rel=0.2)


def test_what_is_cut() -> None:
    """Every field of batch and context that runs along the row, the encoder's too."""
    table = torch.arange(32).view(2, 16)
    batch = {
        **dict.fromkeys(("tokens", "labels", "segments", "types", "order", "uniform"), table),
        "positions": torch.stack((table, table), 1),
        "near": torch.stack((table, table), 2),
        **dict.fromkeys(("source", "source_positions", "source_segments"), table[:, :8]),
    }
    inner = Context(batch["source_positions"], SegmentMask(batch["source_segments"]), segments=batch["source_segments"])
    source = Source(batch["source"], inner, SegmentMask(batch["segments"], batch["source_segments"]))
    given = Context(batch["positions"], DocumentMask(table), segments=table, types=table, source=source)
    cut, context = ContextCut(Place(1, 2), ContextMethod.gather)(batch, given)
    own, read = torch.cat((table[:, 4:8], table[:, 8:12]), 1), torch.cat((table[:, 2:4], table[:, 4:6]), 1)
    for name in ("tokens", "labels", "segments", "types", "order", "uniform"):
        assert torch.equal(cut[name], own)
    for name in ("source", "source_positions", "source_segments"):
        assert torch.equal(cut[name], read)
    assert torch.equal(cut["positions"], torch.stack((own, own), 1))
    assert torch.equal(cut["near"], torch.stack((own, own), 2))
    assert torch.equal(context.positions, cut["positions"])
    assert context.key_positions is batch["positions"]
    assert torch.equal(context.segments, own)
    assert torch.equal(context.types, own)
    assert torch.equal(context.source.tokens, read)
    assert torch.equal(context.source.context.segments, read)
    assert torch.equal(context.source.context.pieces.own(table[:, :8]), read)
    assert torch.equal(context.pieces.own(table), own)
    for mask, whole in (
        (context.mask, given.mask),
        (context.source.mask, source.mask),
        (context.source.context.mask, inner.mask),
    ):
        assert torch.equal(mask.dense(), mask.queries.own(whole.dense(), 2, 1))
    assert torch.equal(context.mask.order()[0], torch.arange(4, 12)[None])
    pictures = torch.zeros(2, 1, 3, 4, 4)
    assert ContextCut(Place(1, 2), ContextMethod.gather)({**batch, "images": pictures}, given)[0]["images"] is pictures


def test_rows_of_other_lengths_are_padded() -> None:
    batch = {name: torch.ones(2, 5, dtype=torch.long) for name in ("tokens", "labels", "segments", "source")}
    batch |= {"positions": torch.ones(2, 2, 5, dtype=torch.long), "images": torch.ones(2, 1, 3, 4, 4)}
    found = padded(batch, 4)
    assert found["labels"].tolist() == [[1] * 5 + [-100] * 3] * 2
    assert found["segments"].tolist() == found["tokens"].tolist() == found["source"].tolist() == [[1] * 5 + [0] * 3] * 2
    assert found["positions"].shape == (2, 2, 8)
    assert found["images"].shape == batch["images"].shape
    assert padded(batch, 5)["tokens"] is batch["tokens"]


def rows() -> list[Tensor]:
    group = dist.group.WORLD
    assert group is not None
    pieces = RowPieces(group, Columns(8, group.size()))
    own = pieces.own(torch.arange(16).view(2, 8))
    return [pieces.whole(own), pieces.total(own.sum(1))]


@pytest.mark.dist
def test_pieces_of_rows() -> None:
    for whole, total in pool.run(2, rows):
        assert whole.tolist() == torch.arange(16).view(2, 8).tolist()
        assert total.tolist() == [28, 92]


def sent() -> dict[str, dict[str, float]]:
    """Bytes of one attention, forward and backward, by method and operation."""
    group = dist.group.WORLD
    assert group is not None
    columns, mask, found = Columns(T, group.size()), CausalMask(T), {}
    for method in ContextMethod:
        own = [torch.ones(B, H, T // group.size(), D, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        with counted() as volume:
            attend(*own, MASKS[method](mask, group, columns, columns)).sum().backward()
        found[method.name] = {name: volume.sent(name) for name in sorted({message.operation for message in volume.messages})}
    return found


@pytest.mark.dist
@pytest.mark.parametrize("n", [2, 4])
def test_what_each_method_sends(n: int) -> None:
    """The table of `parallel/context.py`."""
    piece = B * H * T // n * D * 8
    for found in pool.run(n, sent):
        assert found == {
            "ring": {"send": (6 * n - 4) * piece},
            "ulysses": {"all_to_all": pytest.approx(8 * (n - 1) / n * piece)},
            "gather": {"all_gather": 2 * (n - 1) * piece, "reduce_scatter": 2 * (n - 1) * piece},
        }


def pictured() -> tuple[dict[str, Tensor], torch.nn.Module]:
    """Rows with two pictures each, whose placeholders stand anywhere in the row, and a model that sees them."""
    torch.set_default_dtype(torch.float64)
    spec = compose_job(["model=llava_1_5_7b", "toy=true"]).job.model
    model = spec.build()
    initialize(model, 0)
    make, wanted = torch.Generator().manual_seed(3), 2 * spec.vectors_per_image
    length = 4 * (wanted // 4 + 1) + 4
    tokens = torch.randint(0, spec.image_token, (2, length), generator=make)
    for row in tokens:
        row[torch.randperm(length, generator=make)[:wanted]] = spec.image_token
    side = spec.vision.embedding.image_size
    images = torch.randn(2, 2, 3, side, side, generator=make)
    ones = torch.ones_like(tokens)
    return {"tokens": tokens, "segments": ones, "positions": ones.cumsum(1) - 1, "images": images}, model


def seen() -> tuple[float, float, str]:
    """Differences of hidden vectors, and of the gradients' sums over the processes; what is said of a placeholder too many."""
    group = dist.group.WORLD
    assert group is not None
    batch, model = pictured()
    whole = model(batch["tokens"], model.context(batch))
    parameters = list(model.connector.parameters())
    want = torch.autograd.grad(whole.sin().sum(), parameters)
    own, context = ContextCut(group, ContextMethod.ring)(batch, model.context(batch))
    hidden = model(own["tokens"], context)
    found = torch.autograd.grad(hidden.sin().sum(), parameters)
    for grad in found:
        dist.all_reduce(grad)
    worst = max(((one - other).abs().max() / other.abs().max()).item() for one, other in zip(found, want, strict=True))
    columns = Columns(batch["tokens"].shape[1], 2)
    difference = (hidden - columns.own(whole, 1, group.rank())).abs().max().item()
    batch["tokens"][1] = model.spec.image_token
    with pytest.raises(UserError) as caught:
        model(columns.own(batch["tokens"], 1, group.rank()), context)
    return difference, worst, str(caught.value)


@pytest.mark.dist
def test_pictures_go_to_their_placeholders() -> None:
    for difference, worst, said in pool.run(2, seen):
        assert difference < 1e-12
        assert worst < 1e-12
        assert "but row 1 has" in said
