"""A GGUF file of an architecture that llama.cpp knows, with its tokenizer and chat template."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmfactory.checkpoint.files import fsync
from llmfactory.checkpoint.names.gguf import ARCHITECTURE, Names, extra_tensors
from llmfactory.checkpoint.names.target import gguf_metadata
from llmfactory.checkpoint.names.translate import to_theirs
from llmfactory.core.gguf_file import package
from llmfactory.data.tokenizer.gguf_metadata import tokenizer_metadata
from llmfactory.stage.format.spec import Gguf, Quantization
from llmfactory.stage.format.writer import Exported, Writer

FILE_TYPES = {Quantization.f32: 0, Quantization.f16: 1, Quantization.q8_0: 7}
"""llama.cpp's numbers for them (enum llama_ftype)."""


class GgufWriter(Writer):
    def __init__(self, spec: Gguf) -> None:
        self.spec = spec

    def write(self, model: Exported, path: Path) -> None:
        gguf = package("writing a GGUF file")
        metadata = gguf_metadata(model.spec, model.target)
        metadata |= tokenizer_metadata(model.tokenizer, model.spec.vocab_size)
        names = Names(metadata[ARCHITECTURE], model.target.config)
        described = {
            names.to_gguf(name): self._format(gguf, names.store(name, tensor)) for name, tensor in model.described().items()
        }
        described |= {
            name: ((len(numbers),), self._float32(gguf)) for name, numbers in extra_tensors(model.target.config).items()
        }
        temporary = path.with_name(path.name + ".tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._write(gguf, temporary, metadata, described, self._tensors(model, names))
            fsync(temporary)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _write(
        self, gguf: Any, path: Path, metadata: dict[str, Any], described: dict[str, Any], tensors: Iterator[tuple[str, Tensor]]
    ) -> None:
        with closing(gguf.GGUFWriter(path, metadata[ARCHITECTURE])) as writer:
            writer.add_file_type(FILE_TYPES[self.spec.numbers])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for key, value in metadata.items():
                if key != ARCHITECTURE:
                    writer.add_key_value(key, value, *_type_of(gguf, value))
            for name, (shape, kind) in described.items():
                block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
                size = math.prod(shape) // block * block_bytes
                writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors:
                _, kind = described[name]
                writer.write_tensor_data(gguf.quantize(tensor.to(torch.float32).contiguous().numpy(), kind))

    def _tensors(self, model: Exported, names: Names) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in to_theirs(model.target.family.entries(model.spec), model.tensors):
            yield names.to_gguf(name), names.store(name, tensor)
        for name, numbers in extra_tensors(model.target.config).items():
            yield name, torch.tensor(numbers)

    def _format(self, gguf: Any, tensor: Tensor) -> tuple[tuple[int, ...], Any]:
        """Shape and type of a tensor in the file."""
        kinds, shape = gguf.GGMLQuantizationType, tuple(tensor.shape)
        if len(shape) < 2 or self.spec.numbers is Quantization.f32:
            return shape, self._float32(gguf)
        if self.spec.numbers is Quantization.q8_0 and shape[-1] % gguf.GGML_QUANT_SIZES[kinds.Q8_0][0] == 0:
            return shape, kinds.Q8_0
        return shape, kinds.F16

    @staticmethod
    def _float32(gguf: Any) -> Any:
        return gguf.GGMLQuantizationType.F32


def _type_of(gguf: Any, value: Any) -> tuple[Any, Any]:
    """Type of a value, and of an array's items."""
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        return kinds.ARRAY, kinds.INT32 if isinstance(value[0], int) else _type_of(gguf, value[0])[0]
    for python, kind in ((bool, kinds.BOOL), (int, kinds.UINT32), (float, kinds.FLOAT32)):
        if isinstance(value, python):
            return kind, None
    return kinds.STRING, None
