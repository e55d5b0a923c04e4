"""Kernels in Triton beside PyTorch, torch.compile and Liger-Kernel, on a GPU: forward and backward, milliseconds and bandwidth.

    python benchmarks/kernels.py [rounds]

All ways of an operation are first held against each other: what is timed is the same. Bandwidth is what an operation must read and
write at least, over its time, as a share of what a copy of 1 GiB reaches on the same device in the same run; products of matrices
wait for arithmetic, not for memory, and have none. Without a GPU nothing is measured: the plain paths are run once, so that the file
does not rot.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmfactory.core.context import CausalMask
from llmfactory.core.kernel import Kernel
from llmfactory.kernel import cross_entropy, gated, norm, permutation, rotary
from llmfactory.kernel.adamw import adamw_step_
from llmfactory.kernel.attention import attend
from llmfactory.kernel.grouped_linear import grouped_linear
from llmfactory.kernel.linear_cross_entropy import linear_cross_entropy
from llmfactory.kernel.quantized_linear import nf4, quantized_linear
from llmfactory.model.activation import FUNCTIONS
from llmfactory.model.ffn.spec import Activation

Run = Callable[[list[Tensor]], tuple[Tensor, ...]]
APART = 0.05
"""Most that results and gradients of two ways may differ by, of their norm: they are in bfloat16."""


@dataclass
class Case:
    name: str
    leaves: list[Tensor]
    """What gets a gradient."""
    run: Callable[[list[Tensor], Kernel], tuple[Tensor, ...]]
    moved: int | None
    """Bytes that forward and backward must read and write at least; None: it is bound by arithmetic."""
    liger: Run | None = None
    """The same by Liger-Kernel; None: it has none."""


@dataclass
class Size:
    rows: int
    dim: int
    hidden: int
    vocab: int
    experts: int


LARGE = Size(rows=16384, dim=4096, hidden=11008, vocab=32768, experts=8)
"""Of a model of 7 billion parameters; every tensor is larger than the cache of an H100 (50 MiB)."""
SMALL = Size(rows=16, dim=128, hidden=192, vocab=65, experts=2)
HEAD = 64
"""Width of a head."""


def cases(size: Size, device: str, dtype: torch.dtype) -> list[Case]:
    def leaf(*shape: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
        return (torch.randn(*shape, device=device) * scale).to(dtype).requires_grad_()

    rows, dim, width = size.rows, size.dim, torch.empty(0, dtype=dtype).element_size()
    theirs = liger() if device == "cuda" else {}
    labels = torch.randint(size.vocab, (rows,), device=device)
    silu, tanh = (partial(_gated, name=name) for name in ("silu", "gelu_tanh"))
    angles = torch.rand(1, 1, rows, HEAD // 2, device=device).repeat(1, 1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    signed = torch.cat((-sin[..., : HEAD // 2], sin[..., HEAD // 2 :]), -1)
    order = torch.randperm(2 * rows, device=device)
    ends = (torch.arange(1, size.experts + 1, device=device) * (rows // size.experts)).int()
    packed = nf4(torch.randn(size.hidden, dim, device=device))
    block = rows * dim * width
    return [
        # Forward reads x and writes y; backward reads dy and x and writes dx: five passes.
        Case(
            "RMSNorm",
            [leaf(rows, dim), leaf(dim, dtype=torch.float32)],
            lambda t, k: (norm.rms_norm(t[0], t[1], 1e-5, 0.0, k),),
            5 * block,
            theirs.get("rms"),
        ),
        Case(
            "LayerNorm",
            [leaf(rows, dim), leaf(dim, dtype=torch.float32), leaf(dim, dtype=torch.float32)],
            lambda t, k: (norm.layer_norm(t[0], t[1], t[2], 1e-5, k),),
            5 * block,
            theirs.get("layer"),
        ),
        # Forward reads two and writes one; backward reads three and writes two.
        Case("SwiGLU", [leaf(rows, dim), leaf(rows, dim)], silu, 8 * block, theirs.get("swiglu")),
        Case("GeGLU", [leaf(rows, dim), leaf(rows, dim)], tanh, 8 * block, theirs.get("geglu")),
        # Of queries and of keys: read and written, forward and backward; the tables are read for each.
        Case(
            "RoPE",
            [leaf(1, rows, dim // HEAD, HEAD), leaf(1, rows, dim // HEAD, HEAD)],
            lambda t, k: tuple(rotary.turn(x.transpose(1, 2), cos, signed, HEAD, k) for x in t),
            8 * block + 4 * 2 * cos.numel() * 4,
            None if not theirs else partial(theirs["rope"], cos, sin),
        ),
        # The copy that keeps the leaf for the next round is counted: two passes. Then logits are read and their gradient written in
        # their place, forward; and scaled by what comes from behind, backward.
        Case(
            "cross-entropy",
            [leaf(rows, size.vocab)],
            lambda t, k: (cross_entropy.cross_entropy(t[0].clone(), labels, kernel=k),),
            6 * rows * size.vocab * width,
            None if not theirs else partial(theirs["loss"], labels),
        ),
        # A row is read once and written for each of two visits; backward, the other way round.
        Case("to the experts", [leaf(rows, dim)], lambda t, k: (permutation.to_experts(t[0], order, 2, k),), 6 * block),
        Case(
            "head and loss",
            [leaf(rows // 4, dim), leaf(size.vocab, dim, scale=0.02)],
            lambda t, k: (linear_cross_entropy(t[0], t[1], labels[: rows // 4], kernel=k),),
            None,
            None if not theirs else partial(theirs["head"], labels[: rows // 4]),
        ),
        Case(
            "experts' product",
            [leaf(rows, dim), leaf(size.experts, size.hidden, dim, scale=0.02)],
            lambda t, k: (grouped_linear(t[0], t[1], ends, k),),
            None,
        ),
        Case("NF4 product", [leaf(rows, dim)], lambda t, k: (quantized_linear(t[0], packed, k),), None),
        Case(
            "attention",
            [leaf(8, rows // 8, n, HEAD) for n in (dim // HEAD, dim // HEAD // 2, dim // HEAD // 2)],
            lambda t, k: (attend(*(x.transpose(1, 2) for x in t), CausalMask(rows // 8, t[0].device), kernel=k),),
            None,
        ),
    ]


def _gated(tensors: list[Tensor], kernel: Kernel, name: str) -> tuple[Tensor, ...]:
    return (gated.gated(tensors[0], tensors[1], FUNCTIONS[Activation[name]], name, kernel),)


def liger() -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """Liger-Kernel's functions; none where it is not installed."""
    try:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction as Loss
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Head
        from liger_kernel.ops.geglu import LigerGELUMulFunction as Geglu
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction as Layer
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction as Rms
        from liger_kernel.ops.rope import LigerRopeFunction as Rope
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction as Swiglu
    except ImportError:
        return {}
    exact = torch.float32  # the head's gradient is summed up in it, as ours is
    return {
        # The casting mode that is float32 between, as ours is.
        "rms": lambda t: (Rms.apply(t[0], t[1], 1e-5, 0.0, "gemma", False),),
        "layer": lambda t: (Layer.apply(t[0], t[1], t[2], 1e-5),),
        "swiglu": lambda t: (Swiglu.apply(t[0], t[1]),),
        "geglu": lambda t: (Geglu.apply(t[0], t[1]),),
        "rope": lambda cos, sin, t: Rope.apply(t[0].transpose(1, 2), t[1].transpose(1, 2), cos[0], sin[0]),
        "loss": lambda labels, t: (Loss.apply(t[0].clone(), labels, None, -100, 0.0, 0.0, "none")[0],),
        "head": lambda labels, t: (Head.apply(t[0], t[1], labels, None, None, -100, 0.0, 0.0, "sum", None, False, exact)[0],),
    }


def step(leaves: list[Tensor], run: Run, slopes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward and backward: results and gradients."""
    results = run(leaves)
    return (*results, *torch.autograd.grad(results, leaves, slopes))


def agree(name: str, way: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for place, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        apart = float((ours.float() - plain.float()).norm() / plain.float().norm())
        if not apart <= APART:
            raise SystemExit(f"{name} by {way} is another operation: number {place} differs by {apart:.2g} of its norm")


def milliseconds(job: Callable[[], object], times: int = 20) -> float:
    """Of one call on the GPU, by its own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        job()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times


def ways_of(case: Case) -> dict[str, Callable[[], object]]:
    """What is timed, after it was seen to be the same as PyTorch's, compiled and with the allocator warm."""
    torch._dynamo.reset()  # no limit of recompilations is reached
    runs: dict[str, Run] = {"torch": lambda t: case.run(t, Kernel.torch)}
    runs["compile"] = torch.compile(runs["torch"])
    runs["triton"] = lambda t: case.run(t, Kernel.triton)
    if case.liger is not None:
        runs["liger"] = case.liger
    with torch.no_grad():
        slopes = tuple(torch.randn_like(y) for y in case.run(case.leaves, Kernel.torch))
    expected = step(case.leaves, runs["torch"], slopes)
    ways: dict[str, Callable[[], object]] = {}
    for name, run in runs.items():
        # Some of Liger's write over what they are given: it has tensors of its own.
        leaves = [x.detach().clone().requires_grad_() for x in case.leaves] if name == "liger" else case.leaves
        own = tuple(x.clone() for x in slopes) if name == "liger" else slopes
        agree(case.name, name, step(leaves, run, own), expected)
        ways[name] = partial(step, leaves, run, own)
    return ways


def adamw_ways(count: int, device: str) -> tuple[dict[str, Callable[[], object]], int]:
    """AdamW's step of a weight of `count` numbers in float32, and the bytes that it moves: four read, three written."""
    ours, theirs = ([torch.rand(count, device=device) for _ in range(4)] for _ in range(2))
    steps = [torch.zeros((), device=device) for _ in range(2)]
    options = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "eps": 1e-8, "amsgrad": False, "maximize": False}

    def fused() -> None:
        weight, grad, mean, square = ([x] for x in theirs)
        torch._fused_adamw_(weight, grad, mean, square, [], [steps[1].add_(1)], **options)

    triton = partial(adamw_step_, *ours, steps[0], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, decay=0.1)
    return {"torch": fused, "triton": triton}, 7 * count * 4


def row(name: str, ways: dict[str, Callable[[], object]], moved: int | None, copy: Callable[[], object], rounds: int) -> str:
    """A line of the table. `copy` moves 2 GiB."""
    found: dict[str, list[float]] = {way: [] for way in [*ways, "copy"]}
    for _ in range(rounds):
        for way, job in {"copy": copy, **ways}.items():
            found[way].append(milliseconds(job))
    middle = {way: statistics.median(times) for way, times in found.items()}
    columns = [name, *(f"{middle[way]:.3f}" if way in ways else "-" for way in ("torch", "compile"))]
    columns.append(f"{middle['triton']:.3f} ({min(found['triton']):.3f}-{max(found['triton']):.3f})")
    columns.append(f"{middle['liger']:.3f}" if "liger" in ways else "-")
    columns.append("-" if moved is None else f"{moved / middle['triton'] / (2**31 / middle['copy']):.0%}")
    columns.append(f"{middle['liger'] / middle['triton']:.2f}" if "liger" in ways else "-")
    return f"| {' | '.join(columns)} |"


def measure(rounds: int) -> None:
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    copy()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {rounds} rounds, bfloat16, {LARGE}\n")
    print("| operation | torch ms | compile ms | triton ms (spread) | Liger ms | share of copy bandwidth | Liger / triton |")
    print("|---|---|---|---|---|---|---|")
    for case in cases(LARGE, "cuda", torch.bfloat16):
        print(row(case.name, ways_of(case), case.moved, copy, rounds), flush=True)
    ways, moved = adamw_ways(2**26, "cuda")
    for job in ways.values():
        job()
    print(row("AdamW", ways, moved, copy, rounds))


def main(rounds: int) -> None:
    if torch.cuda.is_available():
        measure(rounds)
        return
    for case in cases(SMALL, "cpu", torch.float32):
        with torch.no_grad():
            slopes = tuple(torch.ones_like(y) for y in case.run(case.leaves, Kernel.torch))
        step(case.leaves, lambda t, case=case: case.run(t, Kernel.torch), slopes)  # type: ignore[misc]
    adamw_ways(5, "cpu")[0]["torch"]()
    print("there is no GPU here: the plain paths ran, and there is nothing to measure")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
