"""Messages between the stages of a pipeline: several tensors each, as they are computed.

Processes send and receive in tables that were made together (`schedule.py`), so the messages between any two come in the same order on
both, and nothing needs a label. What a message consists of, the receiver is told the first time that a micro-batch of that
form comes by, on the CPU; from then on it knows.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llmfactory.core.errors import UserError

LABEL_BYTES = 4096
"""Room for the description of a message."""


class Form(NamedTuple):
    """A tensor of a message, without its values."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    trains: bool
    """Whether its gradient will be sent back."""


class Arriving(NamedTuple):
    """A message on its way."""

    tensors: list[Tensor]
    works: list[dist.Work]

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return self.tensors


class Link:
    """To the other processes of a pipeline, by their place in it.

    Raises:
        UserError: GPU tensors over gloo.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        if device.type != "cpu" and dist.get_backend(group) == "gloo":
            raise UserError("gloo sends no GPU tensor from one process to another, as a pipeline must; use parallel.backend=nccl")
        self.group, self.device = group, device
        self._forms: dict[Hashable, list[Form]] = {}
        self._leaving: list[tuple[dist.Work, Tensor]] = []

    def send(self, tensors: Sequence[Tensor], to: int) -> None:
        """Start sending; the tensors are kept until they have left."""
        self._leaving = [(work, tensor) for work, tensor in self._leaving if not work.is_completed()]
        for tensor in tensors:
            self._isend(tensor.detach().contiguous(), to)

    def receive(self, forms: Sequence[Form], source: int) -> Arriving:
        """Start receiving tensors of these forms."""
        tensors = [torch.empty(form.shape, dtype=form.dtype, device=self.device) for form in forms]
        return Arriving(tensors, [self._irecv(tensor, source) for tensor in tensors])

    def tell(self, key: Hashable, forms: list[Form], to: int) -> None:
        """Say what messages of this key consist of, unless that has been said."""
        if self._forms.get(key) == forms:
            return
        text = json.dumps(
            [(form.name, form.shape, str(form.dtype).removeprefix("torch."), form.trains) for form in forms]
        ).encode()
        if key in self._forms or len(text) > LABEL_BYTES:
            raise RuntimeError(f"stages cannot agree on what they send: {self._forms.get(key)}, then {forms}")
        self._forms[key] = forms
        self._isend(torch.frombuffer(bytearray(text.ljust(LABEL_BYTES)), dtype=torch.uint8), to)

    def ask(self, key: Hashable, source: int) -> list[Form]:
        """What messages of this key consist of."""
        if key not in self._forms:
            label = torch.empty(LABEL_BYTES, dtype=torch.uint8)
            self._irecv(label, source).wait()
            told = json.loads(label.numpy().tobytes())
            self._forms[key] = [Form(name, tuple(shape), getattr(torch, dtype), trains) for name, shape, dtype, trains in told]
        return self._forms[key]

    def finish(self) -> None:
        """Wait until everything has left."""
        for work, _ in self._leaving:
            work.wait()
        self._leaving = []

    def _isend(self, tensor: Tensor, to: int) -> None:
        work = dist.isend(tensor, dist.get_global_rank(self.group, to), group=self.group)
        assert work is not None
        self._leaving.append((work, tensor))

    def _irecv(self, tensor: Tensor, source: int) -> dist.Work:
        work = dist.irecv(tensor, dist.get_global_rank(self.group, source), group=self.group)
        assert work is not None
        return work
