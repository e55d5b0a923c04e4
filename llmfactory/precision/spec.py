"""Catalogue of precisions: in which number format a training step computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from llmfactory.core.errors import Problem
from llmfactory.core.spec import Spec, above, at_least, between

if TYPE_CHECKING:
    from llmfactory.precision.plugin import MeshPrecision


@dataclass(kw_only=True, slots=True)
class PrecisionSpec(Spec):
    """Base of the precisions."""

    def rounding(self) -> Rounding | None:
        """How the optimizer's steps reach weights that are kept in bfloat16; None: weights are not."""
        return None

    def build(self, device_type: str) -> MeshPrecision:
        """For a kind of device; `meta`: for the shape of things only. Raises UserError where the device cannot do it."""
        raise TypeError(f"{type(self).__name__} is a base: pick an option of precision")


class Rounding(Enum):
    """What becomes of the part of an optimizer's step that bfloat16 weights have no digits for."""

    nearest = "it is lost: weights and optimizer state are rounded to the nearest number"
    stochastic = "weights and optimizer state are rounded up or down at random, so that it arrives in the mean"
    compensated = (
        "it is kept in a second bfloat16 number a weight and added at the next step (Kahan 1965); state is rounded at random"
    )
    master = "it stays in a float32 copy of the weights, of which they are the rounded ones; optimizer state is float32"


@dataclass(kw_only=True, slots=True)
class Fp32(PrecisionSpec):
    """Everything in float32."""

    tf32: bool = False
    """Let matrix products round their operands to TF32 (10 bits of significand, sums in float32). For GPUs that have it (Ampere and
    later); refused elsewhere."""

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.fp32 import fp32

        return fp32(self, device_type)


@dataclass(kw_only=True, slots=True)
class Fp64(PrecisionSpec):
    """Everything in float64: for proofs that two layouts compute the same numbers."""

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.fp64 import fp64

        return fp64()


@dataclass(kw_only=True, slots=True)
class Bf16Mixed(PrecisionSpec):
    """Weights, optimizer, norms, softmax and loss in float32, matrix products in bfloat16 (autocast)."""

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.bf16_mixed import bf16_mixed

        return bf16_mixed(device_type)


@dataclass(kw_only=True, slots=True)
class Fp16Mixed(PrecisionSpec):
    """Weights, optimizer, norms, softmax and loss in float32, matrix products in float16 with dynamic loss scaling
    (Micikevicius et al. 2018, section 3.2). A step whose gradients overflow is skipped and counted."""

    init_scale: float = 65536.0
    """Loss scale at the first step."""
    growth_interval: int = 2000
    """Steps in a row without overflow after which the scale grows."""
    growth: float = 2.0
    """What the scale is multiplied by then."""
    backoff_interval: int = 1
    """Overflows since the scale last changed at which it falls; Megatron-LM's hysteresis (2 there)."""
    backoff: float = 0.5
    """What the scale is multiplied by then."""

    def problems(self) -> Iterator[Problem]:
        yield from above(self, 0.0, "init_scale", repair=65536)
        yield from at_least(self, 1, "growth_interval", "backoff_interval")
        yield from above(self, 1.0, "growth", repair=2.0)
        yield from between(self, 0.01, 0.99, "backoff")

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.fp16_mixed import fp16_mixed

        return fp16_mixed(self, device_type)


@dataclass(kw_only=True, slots=True)
class Bf16True(PrecisionSpec):
    """Weights, activations, products, optimizer state in bfloat16; norms, softmax, loss and the sums of gradients in float32."""

    keep: Rounding = Rounding.stochastic
    """What becomes of the part of an optimizer's step that the weights have no digits for."""

    def rounding(self) -> Rounding | None:
        return self.keep

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.bf16_true import bf16_true

        return bf16_true(device_type)


class Recipe(Enum):
    """How far one scale of float8 numbers reaches."""

    tensor_wise = "one for each operand; E4M3 forward, E5M2 for gradients: the fastest"
    row_wise = "one for each row of an operand; E4M3 throughout: the more exact"


@dataclass(kw_only=True, slots=True)
class EightBitSpec(PrecisionSpec):
    """Base of those whose linear maps multiply 8-bit numbers, forward and backward, with scales made when they are used
    (Micikevicius et al. 2022). Weights, optimizer state, norms, softmax and loss are float32, other products bfloat16."""

    skip: list[str] = field(default_factory=list)
    """Linear maps that stay with bfloat16 products, by patterns of their names (`o`, `blocks.0.*`). Head, embedding and router do."""


@dataclass(kw_only=True, slots=True)
class Fp8(EightBitSpec):
    """float8 products. For GPUs that have them (Ada, Hopper and later)."""

    recipe: Recipe = Recipe.tensor_wise
    """How far one scale reaches."""
    emulate: bool = False
    """Multiply the same float8 numbers in float32, on any hardware: the numbers of float8, not its speed."""

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.fp8 import fp8

        return fp8(self, device_type)


@dataclass(kw_only=True, slots=True)
class Int8Mixed(EightBitSpec):
    """int8 products with a scale for each row, summed in int32."""

    stochastic: bool = False
    """Round operands up or down at random, so that they are right in the mean; drawn as dropout's masks are."""

    def build(self, device_type: str) -> MeshPrecision:
        from llmfactory.precision.int8_mixed import int8_mixed

        return int8_mixed(self, device_type)
