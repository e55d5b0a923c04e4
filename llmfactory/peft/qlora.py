"""A frozen base in few bits (QLoRA, Dettmers et al. 2023): the linear maps of its blocks keep their matrices as NF4 or int8.

Applied to a built model from outside, like everything of this package. Embedding, norms, biases and head stay as they are; so does
what is no linear map of its own (the experts of a mixture), and a map whose part works with the matrix in a way of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmfactory.core.sharding import Constant, Parameter
from llmfactory.kernel.linear import Product
from llmfactory.kernel.quantized_linear import int8, nf4, quantized_linear, weight_of
from llmfactory.model.declarations import declarations
from llmfactory.model.packed import Packed
from llmfactory.model.part import Part
from llmfactory.model.skeleton import Skeleton
from llmfactory.parallel.weights import whole
from llmfactory.peft.qlora_spec import Bits

NAMES = {Bits.nf4: ("codes", "scales", "ranges"), Bits.nf4_plain: ("codes", "scales"), Bits.int8: ("codes", "scales")}
"""Parameters of a quantized map, in the order of `kernel.quantized_linear.Packed`."""


class QuantizedLinear(Product, Packed):
    """x [..., I] -> x W^T + b [..., O], W in few bits. A linear map for whoever looks for those, but its matrix does not learn."""

    def __init__(self, linear: nn.Linear, bits: Bits, declared: Parameter) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits, self.declared = linear.in_features, linear.out_features, bits, declared
        for name, content in self.pack(torch.empty(self.shape, device="meta")).items():
            room = torch.empty_like(content, device=linear.weight.device)
            self.register_parameter(name, nn.Parameter(room, requires_grad=False))
        self.register_parameter("bias", linear.bias)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.out_features, self.in_features))

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        content = int8(weight) if self.bits is Bits.int8 else nf4(weight, double=self.bits is Bits.nf4)
        return dict(zip(NAMES[self.bits], content, strict=True))

    def rounded(self, weight: Tensor) -> Tensor:
        return weight_of(tuple(self.pack(weight).values()), self.in_features, weight.dtype)

    def unpacked(self) -> Tensor:
        content = tuple(whole(one) for one in self.packed)
        return weight_of(content, self.in_features, _wide(content))

    def declare(self) -> dict[str, Parameter]:
        return {name: Parameter(Constant(0.0), decay=False) for name in NAMES[self.bits]}

    @property
    def packed(self) -> tuple[Tensor, ...]:
        found = (self._parameters[name] for name in NAMES[self.bits])  # FSDP2 puts plain tensors of whole numbers in their place
        return tuple(one for one in found if one is not None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The matrix [O, I] in full precision, made anew each time."""
        return weight_of(self.packed, self.in_features, _wide(self.packed))

    def product(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.packed, self.kernel)  # type: ignore[no-any-return]

    def visited(self) -> float:
        return float(self.in_features * self.out_features)


def _wide(packed: tuple[Tensor, ...]) -> torch.dtype:
    return torch.float64 if packed[-1].dtype is torch.float64 else torch.float32


def quantize(model: Skeleton, bits: Bits) -> list[str]:
    """Quantize the linear maps of the model's blocks, in place; returns their names. The model may be on the meta device."""
    declared, changed = declarations(model), []
    for name, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear or not _in_blocks(model, name):
            continue
        above, _, own = name.rpartition(".")
        owner = model.get_submodule(above)
        setattr(owner, own, QuantizedLinear(linear, bits, declared[f"{name}.weight"]))
        if _declares(model, above, f"{name}.weight"):  # it multiplies by the matrix itself
            setattr(owner, own, linear)
        else:
            changed.append(name)
    own = frozenset(f"{name}.{kind}" for name in changed for kind in NAMES[bits])
    model.added, model.borrowed = model.added | own, model.borrowed | own
    return changed


def _in_blocks(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    return any(isinstance(model.get_submodule(".".join(parts[:end])), nn.ModuleList) for end in range(1, len(parts)))


def _declares(model: nn.Module, path: str, name: str) -> bool:
    """Whether the part at `path`, or one around it, still declares a parameter of this name."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        part = model.get_submodule(prefix)
        if isinstance(part, Part) and name in (f"{prefix}.{relative}" for relative in part.declare()):
            return True
    return False
