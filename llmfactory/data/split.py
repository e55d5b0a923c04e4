"""Which documents are held out: whole groups, chosen by a hash of their names, until their share of the bytes is reached.

A group is where documents can know of each other (a module, a file), so the training part has nothing of it. The choice depends
on no order and no seed: adding a group moves few others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from llmfactory.data.shard import group_number

UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]
MANY = 1 << 20
"""From so many documents on, groups are held out by their hashes alone: the share comes out by itself, and no list of all is made."""


class Side(IntEnum):
    """Where a document goes."""

    train = 0
    held_out = 1
    training_only = 2
    """Nowhere: of a held-out group, and for training only."""
    overlaps = 3
    """Nowhere: it was to be held out, but stands in the training part, too."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A document whose start is trained on and whose end is held out."""

    document: int
    place: int
    """Byte of the text at which the end begins."""


def choose(group: UInt64, size: Int64, evaluated: NDArray[np.bool_], share: float, most: int) -> NDArray[np.uint8]:
    """The side of each document: about `share` of the bytes that may be held out, and at most `most` bytes of text.

    Args:
        group: [N], number of the document's group.
        size: [N], bytes of its text.
        evaluated: [N], whether it may be held out.
    """
    side = np.zeros(len(group), np.uint8)
    weight = np.where(evaluated, size, 0)
    total = int(weight.sum())
    target = min(share * total, most)
    if target <= 0:
        return side
    if len(group) >= MANY:
        held = group < np.uint64(min(target / total * 2.0**64, 2.0**64 - 1))
    else:
        held = np.isin(group, _groups(group, weight, target))
    side[held & evaluated] = Side.held_out
    side[held & ~evaluated] = Side.training_only
    return side


def choose_by(
    weights: Mapping[str, int], group: UInt64, evaluated: NDArray[np.bool_], share: float, most: int
) -> NDArray[np.uint8]:
    """The side of each document, where the groups held out are those of another corpus.

    Args:
        weights: bytes that the other corpus may hold out of each group, by the group's name.
        group, evaluated: as of `choose`.
    """
    numbers = np.array([group_number(name) for name in weights], np.uint64)
    sizes = np.array(list(weights.values()), np.int64)
    held = numbers[choose(numbers, sizes, np.ones(len(numbers), bool), share, most) == Side.held_out]
    side = np.zeros(len(group), np.uint8)
    side[np.isin(group, held)] = Side.training_only
    side[np.isin(group, held) & evaluated] = Side.held_out
    return side


def _groups(group: UInt64, weight: Int64, target: float) -> UInt64:
    """Groups in the order of their hashes, each taken if that brings the total nearer to the target; never all of them.

    Those of more than a quarter of the target wait for a second round: a few large ones would not stand for the corpus.
    """
    groups, place = np.unique(group, return_inverse=True)
    totals = np.bincount(place, weights=weight, minlength=len(groups)).astype(np.int64).tolist()
    chosen: list[int] = []
    taken = [False] * len(groups)
    held = 0
    for most in (target / 4, target * 2):
        for number, size in enumerate(totals):
            nearer = abs(held + size - target) < abs(held - target)
            if nearer and 0 < size <= most and not taken[number] and len(chosen) + 1 < len(groups):
                chosen.append(number)
                taken[number] = True
                held += size
    return groups[chosen]


def missing(side: NDArray[np.uint8], size: Int64, evaluated: NDArray[np.bool_], share: float, most: int) -> int | None:
    """Bytes that whole documents could not hold out, where that is more than half of what was wanted; else None."""
    target = min(share * int(size[evaluated].sum()), most)
    held = int(size[side == Side.held_out].sum())
    return round(target - held) if held < target / 2 else None


def largest(group: UInt64, size: Int64, side: NDArray[np.uint8]) -> int | None:
    """Number of the largest training document whose group has no other; None: there is none."""
    _, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    alone = (counts[place] == 1) & (side == Side.train)
    if not alone.any():
        return None
    return int(np.argmax(np.where(alone, size, -1)))


def border(data: bytes, wanted: int) -> int | None:
    """Where to cut a text so that about `wanted` bytes stand behind: a paragraph's beginning, or a line's, or, if none is within
    reach, a character's; None: nowhere."""
    place = _border(data, len(data) - wanted, wanted // 2)
    return place if 0 < place < len(data) else None


def _border(data: bytes, place: int, reach: int) -> int:
    place = min(max(place, 1), len(data) - 1)
    for end in (b"\n\n", b"\n"):
        before = data.rfind(end, max(0, place - reach), place) + len(end)
        after = data.find(end, place, place + reach) + len(end)
        near = [at for at in (before, after) if len(end) <= at < len(data)]
        if near:
            return min(near, key=lambda at: abs(at - place))
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:  # inside a character
        place -= 1
    return place
