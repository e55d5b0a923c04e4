"""Number formats inside and outside of the forward pass; Lightning would make float16 bfloat16 on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmfactory.core.errors import ConfigError
from llmfactory.precision.bf16_mixed import bf16_mixed
from llmfactory.precision.fp16_mixed import fp16_mixed
from llmfactory.precision.fp32 import fp32
from llmfactory.precision.fp64 import fp64
from llmfactory.precision.plugin import MeshPrecision
from llmfactory.precision.spec import Bf16Mixed, Fp16Mixed, Fp32, Fp64


@pytest.mark.parametrize(
    ("formats", "weights", "products"),
    [
        (fp32(Fp32(), "cpu"), torch.float32, torch.float32),
        (fp64(), torch.float64, torch.float64),
        (bf16_mixed("cpu"), torch.float32, torch.bfloat16),
        (fp16_mixed(Fp16Mixed(init_scale=1024.0), "cpu"), torch.float32, torch.float16),
    ],
)
def test_formats(formats: MeshPrecision, weights: torch.dtype, products: torch.dtype) -> None:
    layer = formats.convert_module(nn.Linear(2, 2))
    assert layer.weight.dtype == weights
    with formats.forward_context():
        out = layer(torch.ones(1, 2, dtype=weights))
        assert out.dtype == products
        loss = out.sum().to(weights)
    formats.scaled(loss).backward()
    assert layer.weight.grad.dtype == weights
    factor = 1.0 if formats.loss_scale is None else formats.loss_scale.value.item()
    torch.testing.assert_close(layer.weight.grad, torch.full((2, 2), factor, dtype=weights))


def test_scales_are_checked() -> None:
    for field, wrong in (("growth", 1.0), ("backoff", 1.0), ("growth_interval", 0), ("backoff_interval", 0)):
        with pytest.raises(ConfigError, match=field):
            Fp16Mixed(**{field: wrong})


def test_only_float16_needs_a_scale() -> None:
    assert [spec.build("cpu").loss_scale is None for spec in (Fp32(), Fp64(), Bf16Mixed(), Fp16Mixed())] == [
        True,
        True,
        True,
        False,
    ]


def test_init_scale_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="init_scale"):
        Fp16Mixed(init_scale=0.0)
