"""Which documents are held out: whole groups, chosen by a hash of their names, until their share of the bytes is reached.

A group is where documents can know of each other (a module, a file), so the training part has nothing of it. The choice depends
on no order and no seed: adding a group moves few others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from llmfactory.core.errors import UserError
from llmfactory.data.overlap import overlap
from llmfactory.data.source.account import Drops
from llmfactory.data.source.document import Document, Source
from llmfactory.data.spool import Spool


@dataclass(slots=True)
class Parts:
    """Numbers of the documents of each part, in order."""

    train: list[int] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)
    ends: set[int] = field(default_factory=set)
    """Those held-out ones that are the end of a document whose start is trained on."""


def split(source: Source, spool: Spool, share: float, drops: Drops) -> Parts:
    everything = list(range(len(spool)))
    if share == 0:
        return Parts(train=everything)
    sizes = [spool.size(i) if spool.evaluated[i] else 0 for i in everything]
    target = share * sum(sizes)
    chosen, held = _choose_groups(spool, sizes, target)
    parts = Parts()
    for i in everything:
        if spool.groups[i] not in chosen:
            parts.train.append(i)
        elif spool.evaluated[i]:
            parts.held_out.append(i)
        else:
            drops.add("of a held-out group, for training only", spool.name(i), spool.size(i))
    if held < target / 2 and source.can_cut:
        _cut_largest(spool, parts, round(target - held))
    _drop_overlap(source, spool, parts, drops)
    if not parts.train:
        raise UserError("data.held_out leaves nothing to train on: all documents are of one group. Try data.held_out=0")
    if not parts.held_out:
        raise UserError(
            "nothing can be held out: every document that could be also stands in the training part, or there is only one. "
            "Try data.held_out=0 (no evaluation), or more documents"
        )
    return parts


def _choose_groups(spool: Spool, sizes: list[int], target: float) -> tuple[set[int], int]:
    """Groups in the order of their hashes, each taken if that brings the total nearer to the target; never all of them.

    Those of more than a quarter of the target wait for a second round: a few large ones would not stand for the corpus.
    """
    groups, place = np.unique(np.asarray(spool.groups, np.uint64), return_inverse=True)
    totals = np.bincount(place, weights=sizes, minlength=len(groups)).astype(np.int64)
    chosen: set[int] = set()
    held = 0
    for most in (target / 4, target * 2):
        for group, size in zip(groups.tolist(), totals.tolist(), strict=True):
            nearer = abs(held + size - target) < abs(held - target)
            if nearer and 0 < size <= most and group not in chosen and len(chosen) + 1 < len(groups):
                chosen.add(group)
                held += size
    return chosen, held


def _cut_largest(spool: Spool, parts: Parts, size: int) -> None:
    """Hold out the end of the largest document that has no copy: about `size` bytes, from a paragraph or at least a line on."""
    members = Counter(spool.groups)
    largest = max((i for i in parts.train if members[spool.groups[i]] == 1), key=spool.size, default=None)
    if largest is None:
        return
    data = spool.text(largest).encode()
    place = _border(data, len(data) - size, size // 2)
    if not 0 < place < len(data):
        return
    name, first = spool.name(largest), len(spool)
    for part, text in (("start", data[:place]), ("end", data[place:])):
        spool.add(Document(f"{name} ({part})", text.decode(), f"{name} ({part})"))
    parts.train[parts.train.index(largest)] = first
    parts.held_out.append(first + 1)
    parts.ends.add(first + 1)


def _border(data: bytes, place: int, reach: int) -> int:
    """Where a paragraph begins nearest to the place, or a line, or, if none within reach, a character."""
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


def _drop_overlap(source: Source, spool: Spool, parts: Parts, drops: Drops) -> None:
    """Leave out held-out documents that stand in the training part. A cut document's end is not: it goes on where that stops."""
    checked = [i for i in parts.held_out if i not in parts.ends]
    shares = overlap([spool.text(i) for i in checked], spool.texts(parts.train))
    dropped = set()
    for i, share in zip(checked, shares.tolist(), strict=True):
        if share > source.max_overlap:
            sample = f"{spool.name(i)}: {share:.0%} of its 13-word sequences"
            drops.add("held out, but also in the training part", sample, spool.size(i))
            dropped.add(i)
    parts.held_out = [i for i in parts.held_out if i not in dropped]
