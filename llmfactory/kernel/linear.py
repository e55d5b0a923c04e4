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

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def matrix_of(linear: nn.Linear) -> Tensor:
    """[O, I], what a linear map multiplies by now, for parts that work with the matrix itself."""
    return linear.matrix() if isinstance(linear, Product) else linear.weight
