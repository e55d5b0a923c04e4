"""Compiles every Triton kernel for a GPU, from the launches of its operation on small tensors; see `compile_only.py`.

    python tests/kernel/compile_all.py <90 or another compute capability> [bfloat16 ...]

The last line says how many kernels were compiled.
"""

from __future__ import annotations

import sys

import torch
from compile_only import compile_only

from llmfactory.kernel.quantized_linear import CODE_BOOK
from llmfactory.kernel.tile import adamw, attention, cross_entropy, gated, grouped, matmul, norm, quantized, rotary


def launch_all(dtype: torch.dtype) -> None:
    """Each kernel, with the options that lead to other code."""
    x, weight = torch.zeros(40, 48, dtype=dtype), torch.zeros(48)
    for gain, bias, centered in ((weight, None, False), (weight, weight, True), (None, None, True)):
        _, mean, inverse = norm.forward(x, gain, bias, 1e-5, 0.0, centered)
        norm.backward(x, x, gain, mean, inverse, 0.0, bias is not None)
    for activation in ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "tanh"):
        gated.forward(x, x, activation)
    gated.backward(x, x, x, "silu")
    gated.backward(x, x, x, "gelu")
    table = torch.zeros(2, 1, 5, 8)
    rotary.turn(torch.zeros(2, 4, 5, 16, dtype=dtype), table, table, 8, back=True)
    rotary.turn(torch.zeros(2, 5, 4, 16, dtype=dtype).transpose(1, 2), table, table, 2, back=False)
    labels = torch.zeros(40, dtype=torch.int64)
    for smoothing, softcap, z in ((0.0, None, 0.0), (0.1, 30.0, 1e-4)):
        cross_entropy.losses_(x, labels, smoothing, softcap, z)
    adamw.step_(weight, x[0], weight, weight, torch.zeros(4), 0.9, 0.95, 1e-8)
    matmul.product(x, x)
    ends = torch.tensor([3, 40], dtype=torch.int32)
    grouped.rows(x, torch.zeros(2, 56, 48, dtype=dtype), ends)
    grouped.weights(x, x, ends)
    grouped.gather(x, labels, 2)
    grouped.add(x, labels, 2)
    book = quantized.code_book(CODE_BOOK, dtype, x.device)
    for back in (False, True):
        quantized.product(x, torch.zeros(48, 24, dtype=torch.uint8), torch.zeros(48, 1), book, 48, 64, back)
        quantized.product(x, torch.zeros(48, 48, dtype=torch.int8), torch.zeros(48), None, 48, 64, back)
    segments = torch.ones(2, 33, dtype=torch.int64)
    for width, documents, causal, window, softcap in (
        (128, None, True, None, None),
        (256, None, True, None, None),
        (24, (segments, segments), False, 5, 30.0),
    ):
        q, k = torch.zeros(2, 4, 33, width, dtype=dtype), torch.zeros(2, 2, 33, width, dtype=dtype)
        shapes = attention.Shapes(q, k, k, documents, 0.2, causal, window, softcap)
        y, lse = attention.forward(q, k, k, shapes)
        attention.backward(y, q, k, k, y, lse, shapes)


SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes of memory that the threads of a program may share, by compute capability."""


def main(capability: int, formats: list[str]) -> None:
    with compile_only(capability) as found:
        for name in formats:
            launch_all(getattr(torch, name))
    assert all(kernel.asm["cubin"] for kernel in found)
    for kernel in found:
        assert kernel.metadata.shared <= SHARED[capability], (kernel.name, kernel.metadata.shared)
    print(len({kernel.hash for kernel in found}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:] or ["bfloat16"])
