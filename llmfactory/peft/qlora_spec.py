"""Catalogue page of adapters on a base in few bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.peft.base_spec import DEFAULT
from llmfactory.peft.lora_spec import Lora, Start

if TYPE_CHECKING:
    from llmfactory.model.skeleton import Skeleton


class Bits(Enum):
    """Forms of a frozen base's matrices."""

    nf4 = "4 bits, a scale for each 64 numbers, and these scales as 8-bit floats: 0.516 bytes a number"
    nf4_plain = "4 bits, float32 scales: 0.5625 bytes a number"
    int8 = "8 bits, a scale for each row"


@dataclass(kw_only=True, slots=True)
class Qlora(Lora):
    """Low-rank adaptation of a base that is stored in 4 or 8 bits (Dettmers et al. 2023): its linear maps are quantized as they are
    filled, and made anew, a slab at a time, whenever they are multiplied by."""

    base: Bits = Bits.nf4
    """How the matrices of the linear maps in the blocks are stored; embedding, norms, biases and head stay."""

    def problems(self) -> Iterator[Problem]:
        yield from Lora.problems(self)
        if self.start is Start.pissa:
            yield Problem(
                "start", "pissa", "takes its first values out of the base, which does not change in few bits", "start=default"
            )

    def apply(self, model: Skeleton, name: str = DEFAULT) -> None:
        from llmfactory.peft.qlora import quantize

        quantize(model, self.base)
        Lora.apply(self, model, name)
