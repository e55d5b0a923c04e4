"""Kernels in Triton beside PyTorch, torch.compile and Liger-Kernel, on a GPU: forward and backward, milliseconds and bandwidth.

    python benchmarks/kernels.py [rounds]

Bandwidth is what an operation must read and write at least, over its time, as a share of what a copy of 1 GiB reaches on the same
device in the same run. Without a GPU nothing is measured: the plain paths are run once, so that the file does not rot.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmfactory.core.kernel import Kernel
from llmfactory.kernel import cross_entropy, gated, norm, rotary
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import Activation


@dataclass
class Case:
    name: str
    leaves: list[Tensor]
    """What gets a gradient; the first one says the format of the result."""
    run: Callable[[list[Tensor], Kernel], Tensor]
    liger: Callable[[list[Tensor]], Tensor] | None
    """The same by Liger-Kernel; None: it has none of this interface."""
    moved: int
    """Bytes that forward and backward must read and write at least."""


def cases(rows: int, dim: int, vocab: int, device: str, dtype: torch.dtype) -> list[Case]:
    """Sizes of a model of 7 billion parameters, or small ones."""
    x, gate, up = (torch.randn(rows, dim, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    weight, bias = (torch.ones(dim, device=device, requires_grad=True) for _ in range(2))
    logits = torch.randn(rows, vocab, device=device, dtype=dtype, requires_grad=True)
    labels = torch.randint(vocab, (rows,), device=device)
    heads = torch.randn(1, rows, max(1, dim // 64), 64, device=device, dtype=dtype, requires_grad=True)
    angles = torch.rand(1, 1, rows, 64, device=device)
    cos, sin = angles.cos(), angles.sin()
    size = x.element_size()
    theirs = {} if device == "cpu" else liger(labels)
    return [
        # Forward reads x and writes y; backward reads dy and x and writes dx: five passes.
        Case(
            "RMSNorm", [x, weight], lambda t, k: norm.rms_norm(t[0], t[1], 1e-5, 0.0, k), theirs.get("rms"), 5 * x.numel() * size
        ),
        Case(
            "LayerNorm",
            [x, weight, bias],
            lambda t, k: norm.layer_norm(t[0], t[1], t[2], 1e-5, k),
            theirs.get("layer"),
            5 * x.numel() * size,
        ),
        Case(
            "SwiGLU",
            [gate, up],
            lambda t, k: gated.gated(t[0], t[1], FUNCTIONS[Activation.silu], "silu", k),
            theirs.get("swiglu"),
            8 * x.numel() * size,
        ),
        Case(
            "RoPE",
            [heads],
            lambda t, k: rotary.turn(t[0].transpose(1, 2), cos, sin, 64, k),
            None,
            4 * heads.numel() * size,
        ),
        # The copy that keeps the leaf for the next round is counted: two passes.
        Case(
            "cross-entropy",
            [logits],
            lambda t, k: cross_entropy.cross_entropy(t[0].clone(), labels, kernel=k),
            theirs.get("loss"),
            6 * logits.numel() * size,
        ),
    ]


def liger(labels: Tensor) -> dict[str, Callable[[list[Tensor]], Tensor]]:
    """Liger-Kernel's functions, of the same arguments; none where it is not installed."""
    try:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return {}
    return {
        "rms": lambda t: LigerRMSNormFunction.apply(t[0], t[1], 1e-5, 0.0, "llama", False),
        "layer": lambda t: LigerLayerNormFunction.apply(t[0], t[1], t[2], 1e-5),
        "swiglu": lambda t: LigerSiLUMulFunction.apply(t[0], t[1]),
        "loss": lambda t: LigerCrossEntropyFunction.apply(t[0].clone(), labels, None, -100, 0.0, 0.0, "none")[0],
    }


def step(case: Case, run: Callable[[list[Tensor]], Tensor], slope: Tensor) -> None:
    """Forward and backward."""
    torch.autograd.grad(run(case.leaves), case.leaves, slope)


def milliseconds(job: Callable[[], None], times: int = 20) -> float:
    """Of one call on the GPU, by its own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        job()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times


def measure(rounds: int) -> None:
    device = torch.cuda.get_device_name()
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    print(f"{device}, torch {torch.__version__}, {rounds} rounds, bfloat16, 8192 rows of 4096, vocabulary 32768\n")
    print("| operation | torch ms | compile ms | triton ms (spread) | Liger ms | share of copy bandwidth | Liger / triton |")
    print("|---|---|---|---|---|---|---|")
    for case in cases(8192, 4096, 32768, "cuda", torch.bfloat16):
        slope = torch.randn_like(case.run(case.leaves, Kernel.torch))
        compiled = torch.compile(lambda tensors, case=case: case.run(tensors, Kernel.torch))
        ways = {
            "torch": lambda t, case=case: case.run(t, Kernel.torch),
            "compile": compiled,
            "triton": lambda t, case=case: case.run(t, Kernel.triton),
        }
        if case.liger is not None:
            ways["liger"] = case.liger
        for run in ways.values():  # compiled, and the allocator warm
            step(case, run, slope)
        found: dict[str, list[float]] = {name: [] for name in [*ways, "copy"]}
        for _ in range(rounds):
            found["copy"].append(milliseconds(lambda: target.copy_(source)))
            for name, run in ways.items():
                found[name].append(milliseconds(partial(step, case, run, slope)))
        middle = {name: statistics.median(values) for name, values in found.items()}
        share = (case.moved / middle["triton"]) / (2 * source.numel() * 4 / middle["copy"])
        other = f"{middle['liger']:.3f}" if "liger" in ways else "-"
        ratio = f"{middle['liger'] / middle['triton']:.2f}" if "liger" in ways else "-"
        spread = f"{min(found['triton']):.3f}-{max(found['triton']):.3f}"
        columns = (case.name, f"{middle['torch']:.3f}", f"{middle['compile']:.3f}", f"{middle['triton']:.3f} ({spread})", other)
        print(f"| {' | '.join(columns)} | {share:.0%} | {ratio} |")


def main(rounds: int) -> None:
    if torch.cuda.is_available():
        measure(rounds)
        return
    for case in cases(17, 128, 65, "cpu", torch.float32):
        result = case.run(case.leaves, Kernel.torch)
        torch.autograd.grad(result, case.leaves, torch.ones_like(result))
    print("there is no GPU here: the plain paths ran, and there is nothing to measure")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
