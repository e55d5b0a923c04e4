"""Move tensors between a family's names and ours, one entry at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from llmfactory.checkpoint.names.family import Entry, Family
from llmfactory.core.errors import UserError
from llmfactory.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


def to_ours(entries: Iterable[Entry], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) of each; `read` gives one of theirs. No more than one entry is in memory."""
    for entry in entries:
        yield from zip(entry.ours, entry.to_ours([read(name) for name in entry.theirs]), strict=True)


def to_theirs(entries: Iterable[Entry], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(their name, tensor) of each."""
    for entry in entries:
        yield from zip(entry.theirs, entry.to_theirs([tensors[name] for name in entry.ours]), strict=True)


def check_names(family: Family, spec: ModelSpec, present: Iterable[str]) -> None:
    """A checkpoint must hold the family's tensors and nothing else. Raises UserError with every name that is wrong."""
    present = set(present)
    expected = {name for entry in family.entries(spec) for name in entry.theirs}
    ignored = [re.compile(pattern) for pattern in family.ignored]
    lines = [f"missing: {name}" for name in sorted(expected - present)]
    lines += [f"unexpected: {name}" for name in sorted(present - expected) if not any(p.fullmatch(name) for p in ignored)]
    if lines:
        shown = "\n  ".join(lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else []))
        raise UserError(f"the tensors are not those of {family.types[0]}:\n  {shown}")
