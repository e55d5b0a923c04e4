"""Where our linear maps stand in a family's model, found by sending row numbers through its table of tensors.

A family may hold several of our maps in one (q, k and v), in an order of its own (heads beside heads), or as [in, out]. All that is a
matter of which row stands where, so one probe of the table tells it, and no family needs a second table for adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmfactory.checkpoint.names.family import Entry

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT = ".weight"
_WIDTH = 3
"""Inputs of the matrices that probe a table: enough to tell rows from columns."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One linear map of theirs, and which rows (outputs) of ours it holds."""

    module: str
    """Its path."""
    ours: tuple[str, ...]
    """Paths of our maps whose rows it holds."""
    sizes: tuple[int, ...]
    """Outputs of each of them."""
    rows: Tensor
    """[outputs of theirs], the row of ours, stacked, that each of theirs is."""
    flipped: bool
    """They store it as [in, out]."""


def places(entries: Iterable[Entry], outputs: Mapping[str, int]) -> Iterator[Place]:
    """All linear maps of theirs that are made of ours; `outputs`: width of what each of our maps gives, by its path."""
    for entry in entries:
        paths = [name.removesuffix(WEIGHT) for name in entry.ours]
        if all(name.endswith(WEIGHT) and path in outputs for name, path in zip(entry.ours, paths, strict=True)):
            yield from _probed(entry, paths, [outputs[path] for path in paths])


def _probed(entry: Entry, paths: list[str], sizes: list[int]) -> Iterator[Place]:
    import torch

    numbers = torch.arange(sum(sizes) * _WIDTH).view(-1, _WIDTH)
    try:
        tensors = entry.to_theirs(list(numbers.split(sizes)))  # type: ignore[no-untyped-call]
    except RuntimeError:  # columns are cut up too (XLNet's heads), so that theirs is no linear map
        return
    for name, theirs in zip(entry.theirs, tensors, strict=True):
        for flipped in (False, True) if theirs.dim() == 2 else ():
            found = theirs.T if flipped else theirs
            rows = found[:, 0] // _WIDTH
            if found.shape[1] == _WIDTH and torch.equal(found, numbers[rows]):
                kept = _kept(rows, sizes)
                chosen = [number for number in range(len(sizes)) if kept[number]]
                moved = _without_gaps(rows, sizes, kept)
                yield Place(
                    name.removesuffix(WEIGHT), tuple(paths[n] for n in chosen), tuple(sizes[n] for n in chosen), moved, flipped
                )
                break


def _kept(rows: Tensor, sizes: list[int]) -> list[bool]:
    """Of which of our maps there are rows."""
    import torch

    ends = torch.tensor(sizes).cumsum(0)
    owner = torch.bucketize(rows, ends, right=True)
    return [bool((owner == number).any()) for number in range(len(sizes))]


def _without_gaps(rows: Tensor, sizes: list[int], kept: list[bool]) -> Tensor:
    """The same rows where maps that are not kept are left out of the stack."""
    start, gone, moved = 0, 0, rows.clone()
    for size, stays in zip(sizes, kept, strict=True):
        within = (rows >= start) & (rows < start + size)
        moved[within] -= gone
        start, gone = start + size, gone + (0 if stays else size)
    return moved
