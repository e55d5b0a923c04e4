"""A linear map whose product and bias are apart: layouts sum the product before the bias is added, adapters change it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Product(nn.Linear):
    """y = product(x) + bias. Names of its parameters are those of `nn.Linear`."""

    def product(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], without the bias."""
        return F.linear(x, self.weight)

    def matrix(self) -> Tensor:
        """[O, I], what `product` multiplies by."""
        return self.weight

    def offset(self) -> Tensor | None:
        """[O], what is added once to the product."""
        return self.bias

    def forward(self, x: Tensor) -> Tensor:
        y, offset = self.product(x), self.offset()
        return y if offset is None else y + offset.to(y.dtype)


def matrix_of(linear: nn.Linear) -> Tensor:
    """[O, I], what a linear map multiplies by now, for parts that work with the matrix itself."""
    return linear.matrix() if isinstance(linear, Product) else linear.weight
