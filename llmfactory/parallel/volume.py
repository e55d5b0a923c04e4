"""Counts what a process sends: bytes by operation and group, whoever asks for the operation.

    with counted() as volume:
        ...                                 # FSDP2, DTensor, pipelining, llmfactory.parallel.collectives, anything
    volume.sent("all_reduce", ranks=(0, 1))

Every collective operation of torch goes through its dispatcher, also those of the backward pass, and is seen there. The bytes
that one process sends are those of the algorithms with the least traffic (ring, pairwise), the textbook volume: with n
processes and a piece of S bytes each,

| operation | bytes that a process sends |
|---|---|
| all-reduce of S | 2 (n - 1) / n S |
| all-gather of pieces S | (n - 1) S |
| reduce-scatter of n S | (n - 1) S |
| all-to-all | what goes to others |
| send | S |
| broadcast and reduce of S, gather and scatter of pieces S | (n - 1) / n S, the mean over the group |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, slots=True)
class Message:
    """One collective operation of this process."""

    operation: str
    """`all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, `send`, `broadcast`, `reduce`, `gather` or `scatter`."""
    ranks: tuple[int, ...]
    """The group's processes, in the numbering of the world."""
    sent: float
    """Bytes that this process sends, see above."""
    dtype: torch.dtype
    """Of the (first) tensor."""


@dataclass(slots=True)
class Volume:
    """All operations of this process while it was counted, in order."""

    messages: list[Message] = field(default_factory=list)

    def select(
        self, operation: str | None = None, ranks: Iterable[int] | None = None, dtype: torch.dtype | None = None
    ) -> list[Message]:
        """The messages of an operation, of a group, of a dtype; None: of all."""
        group = None if ranks is None else tuple(ranks)
        return [
            message
            for message in self.messages
            if operation in (None, message.operation) and group in (None, message.ranks) and dtype in (None, message.dtype)
        ]

    def sent(self, operation: str | None = None, ranks: Iterable[int] | None = None, dtype: torch.dtype | None = None) -> float:
        """Bytes that this process sent in those messages."""
        return sum(message.sent for message in self.select(operation, ranks, dtype))


@contextmanager
def counted() -> Iterator[Volume]:
    """Count what this process sends within. Raises NotImplementedError for an operation that is not known here."""
    volume = Volume()
    with _Listener(volume):
        yield volume


class _Listener(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, volume: Volume) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.volume = volume

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace in ("c10d", "_c10d_functional"):
            name = func._schema.name.split("::")[1]
            names = [argument.name for argument in func._schema.arguments]
            self._hear(name, {**dict(zip(names, args, strict=False)), **kwargs})
        return func(*args, **kwargs)

    def _hear(self, name: str, given: dict[str, Any]) -> None:
        if name in SILENT:
            return
        if name not in KINDS:
            raise NotImplementedError(f"the collective operation {name} is not counted")
        operation, sent = KINDS[name]
        group = _group(given)
        first = next(_tensors(tuple(given.values())))
        ranks = tuple(dist.get_process_group_ranks(group))
        self.volume.messages.append(Message(operation, ranks, sent(given, group), first.dtype))


def _group(given: dict[str, Any]) -> dist.ProcessGroup:
    group: Any = given.get("process_group", given.get("group_name"))
    if isinstance(group, str):
        return _resolve_process_group(group)  # type: ignore[arg-type]
    return group if isinstance(group, dist.ProcessGroup) else dist.ProcessGroup.unbox(group)


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors within lists of lists."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _bytes(values: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(values))


Sent = Callable[[dict[str, Any], dist.ProcessGroup], float]


def _input(share: Callable[[int], float]) -> Sent:
    """Bytes that this process puts in, times a share that depends on the number of processes."""
    return lambda given, group: _bytes(next(given[name] for name in INPUTS if name in given)) * share(group.size())


INPUTS = ("input_tensors", "input_list", "inputs", "input_tensor", "input", "tensors", "tensor")
"""What operators call that which a process puts in."""


def _to_others(given: dict[str, Any], group: dist.ProcessGroup) -> float:
    splits = given["input_split_sizes"]
    x = given["input"]
    kept = splits[group.rank()] / max(1, sum(splits)) if splits else 1 / group.size()
    return _bytes(x) * (1 - kept)


def _others_of_list(given: dict[str, Any], group: dist.ProcessGroup) -> float:
    pieces = given["input_tensors"]
    return _bytes(pieces) - _bytes(pieces[group.rank()])


def _batched_sends(given: dict[str, Any], group: dist.ProcessGroup) -> float:
    return sum(_bytes(x) for kind, x in zip(given["op_list"], given["tensors"], strict=True) if kind == "isend")


def _piece(given: dict[str, Any], group: dist.ProcessGroup) -> float:
    return _bytes(given["output_tensors"]) * _once(group.size())


def _twice(n: int) -> float:
    return 2 * (n - 1) / n


def _once(n: int) -> float:
    return (n - 1) / n


def _each(n: int) -> float:
    return n - 1


KINDS: dict[str, tuple[str, Sent]] = {
    "allreduce_": ("all_reduce", _input(_twice)),
    "allreduce_coalesced_": ("all_reduce", _input(_twice)),
    "all_reduce": ("all_reduce", _input(_twice)),
    "all_reduce_": ("all_reduce", _input(_twice)),
    "all_reduce_coalesced": ("all_reduce", _input(_twice)),
    "all_reduce_coalesced_": ("all_reduce", _input(_twice)),
    "allgather_": ("all_gather", _input(_each)),
    "allgather_coalesced_": ("all_gather", _input(_each)),
    "allgather_into_tensor_coalesced_": ("all_gather", _input(_each)),
    "_allgather_base_": ("all_gather", _input(_each)),
    "all_gather_into_tensor": ("all_gather", _input(_each)),
    "all_gather_into_tensor_out": ("all_gather", _input(_each)),
    "all_gather_into_tensor_coalesced": ("all_gather", _input(_each)),
    "reduce_scatter_": ("reduce_scatter", _input(_once)),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", _input(_once)),
    "_reduce_scatter_base_": ("reduce_scatter", _input(_once)),
    "reduce_scatter_tensor": ("reduce_scatter", _input(_once)),
    "reduce_scatter_tensor_out": ("reduce_scatter", _input(_once)),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", _input(_once)),
    "alltoall_": ("all_to_all", _others_of_list),
    "alltoall_base_": ("all_to_all", _to_others),
    "all_to_all_single": ("all_to_all", _to_others),
    "send": ("send", _input(lambda n: 1.0)),
    "isend": ("send", _input(lambda n: 1.0)),
    "batch_p2p_ops": ("send", _batched_sends),
    "broadcast_": ("broadcast", _input(_once)),
    "broadcast": ("broadcast", _input(_once)),
    "reduce_": ("reduce", _input(_once)),
    "gather_": ("gather", _input(_once)),
    "scatter_": ("scatter", _piece),
}
"""Operation and volume of each operator of torch's dispatcher, by its name there."""
SILENT = {
    "barrier",
    "monitored_barrier_",
    "check_for_nan",
    "recv_",
    "recv_any_source_",
    "irecv",
    "wait_tensor",
    "_wrap_tensor_autograd",
}
"""Operators by which a process sends no data."""
