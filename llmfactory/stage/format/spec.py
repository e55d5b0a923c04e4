"""Catalogue of formats that stage=export writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, at_least

if TYPE_CHECKING:
    from llmfactory.stage.format.writer import Writer


@dataclass(kw_only=True, slots=True)
class FormatSpec(Spec):
    """Base of the formats."""

    def build(self) -> Writer:
        raise TypeError(f"{type(self).__name__} is a base: pick an option of stage/format")


class Number(Enum):
    """Formats of numbers."""

    float64 = "F64"
    float32 = "F32"
    float16 = "F16"
    bfloat16 = "BF16"


@dataclass(kw_only=True, slots=True)
class Hf(FormatSpec):
    """A folder of the Hugging Face format: config.json, safetensors, tokenizer, generation_config.json."""

    numbers: Number | None = None
    """Format of the tensors; None: as they are stored now, so that nothing is rounded."""
    shard_bytes: int = 5_000_000_000
    """Most bytes of tensors in a file; a larger tensor has one of its own."""

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, 1, "shard_bytes")

    def build(self) -> Writer:
        from llmfactory.stage.format.hf import HfWriter

        return HfWriter(self)


class Quantization(Enum):
    """How the matrices are stored; vectors are float32 in any case."""

    f32 = "F32"
    f16 = "F16"
    q8_0 = "Q8_0"
    """8 bits a number and a float16 factor for each 32 (llama.cpp); matrices whose rows 32 does not divide as f16."""


@dataclass(kw_only=True, slots=True)
class Gguf(FormatSpec):
    """A GGUF file with tokenizer and chat template, for llama.cpp and what is built on it."""

    numbers: Quantization = Quantization.f16
    """How the matrices are stored."""

    def build(self) -> Writer:
        from llmfactory.stage.format.gguf import GgufWriter

        return GgufWriter(self)


@dataclass(kw_only=True, slots=True)
class Peft(FormatSpec):
    """A folder of the library `peft`: what a run trained beside its base, for `PeftModel.from_pretrained`."""

    base: str | None = None
    """Folder of the base in the Hugging Face format, which the adapter will name; None: the one that the run was begun with."""

    def build(self) -> Writer:
        raise TypeError("adapters are written by stage/format/peft.py, without the model that they stand beside")
