"""The model as it was when training began, to tell how far it has moved.

Where adapters are all that is trained, it is the model without them. Elsewhere it is a copy, `model.reference`, which never learns and
which checkpoints leave out: a run that goes on makes it anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from llmfactory.model.packed import packed
from llmfactory.parallel.weights import put
from llmfactory.peft.active import base_stays, without_adapters

if TYPE_CHECKING:
    from llmfactory.model.skeleton import Skeleton

REFERENCE = "reference"


def equip_reference(model: Skeleton) -> None:
    """The copy, where one is needed; before anything else that is trained beside the model."""
    if not base_stays(model):
        add_reference(model)


def add_reference(model: Skeleton) -> None:
    """The copy; whoever asks it sees to it that it drops nothing."""
    reference = model.spec.build().requires_grad_(False)
    names = frozenset(f"{REFERENCE}.{name}" for name in reference.state_dict())
    model.add_module(REFERENCE, reference)
    model.added |= names
    model.borrowed |= names


def begin_reference(model: Skeleton) -> None:
    """Give the copy the weights that the model has."""
    reference = getattr(model, REFERENCE, None)
    if reference is not None:
        copy_weights(model, reference)


@torch.no_grad()
def copy_weights(model: Skeleton, companion: Skeleton, new_head: bool = False) -> None:
    """The model's weights into one like it that lies like it; `new_head`: but for those of the head. Of matrices in few bits those
    that the model multiplies by."""
    matrices = packed(model)
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    persistent = companion.state_dict().keys()
    for name, tensor in (*companion.named_parameters(), *companion.named_buffers()):
        if name in persistent and not (new_head and name.startswith("head.")):
            if name in matrices:
                put(tensor, matrices[name].unpacked())
            else:
                tensor.copy_(own[name])


@contextmanager
def reference_of(model: Skeleton) -> Iterator[Skeleton]:
    """The reference, for the time of the block."""
    reference = getattr(model, REFERENCE, None)
    if reference is not None:
        yield reference
    else:
        with without_adapters(model):
            yield model
