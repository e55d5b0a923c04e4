"""Low-rank changes of our linear maps as changes of a family's, and back, exactly.

Where one map of theirs holds several of ours, with changes B_i A_i of the rows of each, theirs is B A with the A_i one below the other
and the B_i along the diagonal. The other way every map of ours gets their A and its own rows of their B.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llmfactory.checkpoint.names.adapter_places import Place

if TYPE_CHECKING:
    from torch import Tensor

    Pair = tuple[Tensor, Tensor]
    """A [R, I] and B [O, R]."""


def joined(place: Place, ours: Mapping[str, Pair], together: bool = True) -> Pair | None:
    """The change of their map; None: none of ours is changed. `together`: maps with the same A keep it in common."""
    import torch

    there = [path for path in place.ours if path in ours]
    if not there:
        return None
    first_a, first_b = ours[there[0]]
    shared = together and all(torch.equal(ours[path][0], first_a) for path in there)
    ranks = {path: ours[path][0].shape[0] for path in there}
    a = first_a if shared else torch.cat([ours[path][0] for path in there])
    b = first_b.new_zeros(sum(place.sizes), a.shape[0])
    row = column = 0
    for path, size in zip(place.ours, place.sizes, strict=True):
        if path in ours:
            b[row : row + size, column : column + ranks[path]] = ours[path][1]
            column += 0 if shared else ranks[path]
        row += size
    return a, b[place.rows]


def parted(found: Iterable[tuple[Place, Pair]]) -> dict[str, Pair]:
    """The changes of our maps, of those of theirs."""
    import torch

    ours: dict[str, Pair] = {}
    for place, (a, b) in found:
        for path, rows in by_rows(place, b).items():
            if path in ours:  # theirs are several maps, ours is one
                ours[path] = torch.cat((ours[path][0], a)), torch.cat((ours[path][1], rows), 1)
            else:
                ours[path] = a, rows
    return ours


def by_rows(place: Place, theirs: Tensor) -> dict[str, Tensor]:
    """What belongs to the outputs [O, ...] of their map, for each of ours; rows that it lacks are zero."""
    stacked = theirs.new_zeros(sum(place.sizes), *theirs.shape[1:])
    stacked[place.rows] = theirs
    return dict(zip(place.ours, stacked.split(list(place.sizes)), strict=True))  # type: ignore[no-untyped-call]


def of_rows(place: Place, ours: Mapping[str, Tensor]) -> Tensor:
    """The other way: what belongs to the outputs of each of our maps, all of which are there."""
    import torch

    return torch.cat([ours[path] for path in place.ours])[place.rows]
