"""Safetensors files, written tensor by tensor: the header is known before any content is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from llmfactory.checkpoint.names.folder import INDEX, WHOLE

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""How the format calls them."""


def write_shards(folder: Path, described: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> None:
    """`described`: shapes and formats of the tensors that follow, in their order. One file, or several and an index."""
    shards = list(_cut(described, shard_bytes))
    files = [WHOLE] if len(shards) == 1 else [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    stream = iter(tensors)
    for file, names in zip(files, shards, strict=True):
        _write(folder / file, {name: described[name] for name in names}, stream)
    if len(shards) > 1:
        total = sum(map(_size, described.values()))
        places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _cut(described: Mapping[str, Tensor], most: int) -> Iterator[list[str]]:
    """Names of each file."""
    names: list[str] = []
    size = 0
    for name, tensor in described.items():
        if names and size + _size(tensor) > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += _size(tensor)
    yield names


def _write(path: Path, described: Mapping[str, Tensor], stream: Iterator[tuple[str, Tensor]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in described.items():
        begin, end = end, end + _size(tensor)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for expected, shape in described.items():
            name, tensor = next(stream)
            if name != expected or tensor.shape != shape.shape or tensor.dtype != shape.dtype:
                raise ValueError(f"{name} stands where {expected} was announced")
            if tensor.numel():
                file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
