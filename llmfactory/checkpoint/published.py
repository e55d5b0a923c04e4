"""Weights of a published model into a model of ours, tensor by tensor.

Each tensor is read from its place in the file (not mapped into memory, where pages of the file would count as well), turned
into ours and copied into the parameter, in the parameter's own format. So the peak is the model and the largest tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from llmfactory.checkpoint.names.published import Published
from llmfactory.checkpoint.names.translate import to_ours, to_theirs
from llmfactory.checkpoint.tensors import Described, describe, differences, model_tensors, starting_tensors, united, without
from llmfactory.core.errors import UserError
from llmfactory.core.gguf_file import package
from llmfactory.core.safetensors_file import Stored
from llmfactory.model.packed import packed
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import ModelSpec
from llmfactory.parallel.mesh import World
from llmfactory.parallel.weights import box, cut, local, put

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Formats that are numbers as they stand, under the names of safetensors and of GGUF."""
SLAB = 1 << 22
"""Bytes of quantized numbers that are turned into float32 at once."""


@torch.no_grad()
def load_published(published: Published, model: Skeleton, new: str | None = None, world: World | None = None) -> None:
    """Fill the model. Raises UserError with every tensor that does not fit, before anything is read.

    `new`: beginning of the names of a part that is not the published one: it is left alone. `world`: the processes over which
    the model is laid out; each reads every tensor and keeps its piece. None: the model is whole.
    """
    check_shapes(published)
    room, matrices = without(starting_tensors(model), new), packed(model)
    _insist_same(published, describe(room) if world is None else united(room, world), new)
    for name, tensor in tensors_of(published):
        if name in matrices:
            for parameter, content in matrices[name].contents(tensor):
                put(parameter, content)
        elif name in room:
            put(room[name], tensor)
    table = room.get("embedding.weight")
    for name, stored in published.tied.items():
        if table is not None and not torch.equal(cut(stored_tensor(stored), box(table)).to(local(table)), local(table)):
            raise UserError(f"{published.path}: {name} differs from the embedding, though its config ties the two")


def stored_tensors(published: Published, spec: ModelSpec) -> dict[str, Tensor]:
    """All tensors of a model under our names, each as it is stored. Raises UserError where `spec` is another model."""
    with torch.device("meta"):
        _insist_same(published, describe(model_tensors(spec.build())))
    return dict(tensors_of(published))


def tensors_of(published: Published) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors, one after the other."""
    return to_ours(published.family.entries(published.spec), lambda name: read(published, name))


def _insist_same(published: Published, room: Described, new: str | None = None) -> None:
    """The command line may have changed the model that the file describes."""
    with torch.device("meta"):
        described = describe(without(model_tensors(published.spec.build()), new))
    if lines := differences(room, described):
        raise UserError(f"{published.path} does not fit the model:\n  " + "\n  ".join(_first(lines)))


def check_shapes(published: Published) -> None:
    """Every tensor has the shape that its config implies and a format that can be read. Raises UserError with all that differ."""
    with torch.device("meta"):
        tensors: Mapping[str, Tensor] = dict(published.spec.build().named_parameters())
    expected = dict(to_theirs(published.family.entries(published.spec), tensors))
    lines = []
    for name, stored in published.tensors.items():
        wanted = list(published.store(name, expected[name]).shape)
        if list(stored.shape) != wanted:
            lines.append(f"another shape: {name} is {list(stored.shape)} in {stored.path.name}, its config says {wanted}")
        elif stored.dtype not in DTYPES and not published.is_gguf:
            lines.append(f"another format: {name} is stored as {stored.dtype}; {', '.join(DTYPES)} can be read")
    if lines:
        raise UserError(f"{published.path} is not what its config says:\n  " + "\n  ".join(_first(lines)))


def read(published: Published, name: str) -> Tensor:
    """A tensor under its name in the family's table: as it is stored, quantized ones as float32."""
    return published.restore(name, stored_tensor(published.tensors[name]))


def stored_tensor(stored: Stored) -> Tensor:
    """As its file holds it; quantized ones as float32."""
    if stored.dtype not in DTYPES:
        return _dequantized(stored)
    if not stored.size:
        return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        return torch.frombuffer(_bytes(stored, file, stored.size), dtype=DTYPES[stored.dtype]).reshape(stored.shape)


def _dequantized(stored: Stored) -> Tensor:
    """As float32, a slab of rows after the other, so that the file's own form never stands whole beside it."""
    gguf = package(f"reading {stored.path.name}")
    kind = gguf.GGMLQuantizationType[stored.dtype]
    out = np.empty((math.prod(stored.shape[:-1]), stored.shape[-1]), np.float32)
    row_bytes = stored.size // len(out)
    slab = max(1, SLAB // row_bytes)
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        for start in range(0, len(out), slab):
            rows = out[start : start + slab]
            content = np.frombuffer(_bytes(stored, file, len(rows) * row_bytes), np.uint8).reshape(len(rows), row_bytes)
            try:
                rows[:] = gguf.dequantize(content, kind)
            except NotImplementedError as error:
                raise UserError(f"{stored.path}: the format {stored.dtype} cannot be read: {error}") from error
    return torch.from_numpy(out).reshape(stored.shape)


def _bytes(stored: Stored, file: BinaryIO, size: int) -> bytearray:
    content = bytearray(size)
    if file.readinto(content) != size:  # type: ignore[attr-defined]
        raise UserError(f"{stored.path} has been cut off since its table was read")
    return content


def _first(lines: list[str]) -> list[str]:
    return lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
