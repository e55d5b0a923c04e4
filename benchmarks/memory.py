"""Peak memory of a training step under each way to save some, and of head and loss at a large vocabulary.

    python benchmarks/memory.py step                    a LLaMA-style step: L6 D384 H6 FF1024 V32000, 8 rows of 256 tokens
    python benchmarks/memory.py step --size long        the same with 8 rows of 1024 tokens: activations are what is large
    python benchmarks/memory.py step --parts            and of what the peak consists: the operation that made each tensor, its shape
    python benchmarks/memory.py step --size large       L24 D1024 H16 FF2816 V32000, 8 rows of 1024 tokens: for a GPU
    python benchmarks/memory.py step --size weights     L12 D512, V 4096, one row of 128 tokens: weights are larger than activations
    python benchmarks/memory.py head                    V 131072, 8192 tokens of width 384: our loss beside whole logits

On a GPU the allocator's highest number counts. On a CPU every tensor that an operation makes is counted from its making until its
storage is freed (a `TorchDispatchMode`): what the program asks for, not what the allocator holds. `step` counts the whole of it,
weights, gradients and AdamW's state included, and says beside it what is left without these; `head` leaves out the matrix and the
hidden vectors themselves. Tensors have no memory there (`FakeTensorMode`: whole logits alone would take 16 GiB), so that nothing is
computed, and peaks depend on nothing but the program. `seconds` are for a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

MIB = 2**20
SIZES = {
    "llama": {"vocab": 32000, "dim": 384, "layers": 6, "heads": 6, "hidden": 1024, "rows": 8, "length": 256},
    "long": {"vocab": 32000, "dim": 384, "layers": 6, "heads": 6, "hidden": 1024, "rows": 8, "length": 1024},
    "large": {"vocab": 32000, "dim": 1024, "layers": 24, "heads": 16, "hidden": 2816, "rows": 8, "length": 1024},
    "weights": {"vocab": 4096, "dim": 512, "layers": 12, "heads": 8, "hidden": 1408, "rows": 1, "length": 128},
    "tiny": {"vocab": 512, "dim": 64, "layers": 4, "heads": 4, "hidden": 176, "rows": 2, "length": 64},
}


class Counter(TorchDispatchMode):
    """Bytes of the storages that are alive, those that were there before included."""

    def __init__(self, there: Mapping[str, Sequence[torch.Tensor]]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, tuple[str, int]] = {}
        """What made each storage, and its bytes."""
        self.at_peak: dict[int, tuple[str, int]] = {}
        for name, tensors in there.items():
            for x in tensors:
                self._see(x.untyped_storage(), name)

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        found = operation(*given, **(named or {}))
        for x in tree_iter(found):
            if isinstance(x, torch.Tensor):
                self._see(x.untyped_storage(), f"{operation.overloadpacket} {list(x.shape)}")
        return found

    def _see(self, storage: torch.UntypedStorage, made: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.alive[key] = made, size
        self.now += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.alive)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key)[1]

    def parts(self) -> list[tuple[float, int, str]]:
        """MiB, number and maker of what was alive at the peak, the largest first."""
        sizes: dict[str, list[int]] = {}
        for made, size in self.at_peak.values():
            sizes.setdefault(made, []).append(size)
        return sorted(((sum(some) / MIB, len(some), made) for made, some in sizes.items()), reverse=True)


def peak_of(
    action: Callable[[], object], there: Mapping[str, Sequence[torch.Tensor]], parts: bool = False
) -> tuple[float, float]:
    """Highest number of MiB while `action` runs, with what is there before, and its seconds."""
    start = time.process_time()
    if next(iter(there.values()))[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / MIB, time.perf_counter() - start
    counter = Counter(there)
    with counter:
        action()
    for size, number, made in counter.parts()[: 12 if parts else 0]:
        print(f"    {size:7.1f} MiB in {number:3} x {made}", file=sys.stderr)
    return counter.peak / MIB, time.process_time() - start


# ---- a training step

WAYS: dict[str, dict[str, Any]] = {
    "whole logits": {"fused": False},
    "plain": {},
    "recompute, all blocks": {"recompute": True},
    "recompute, every second": {"recompute": True, "recompute_every": 2},
    "recompute, products kept": {"recompute": True, "recompute_keep": ["products"]},
    "recompute, attention kept": {"recompute": True, "recompute_keep": ["attention"]},
    "recompute, half the budget": {"recompute": True, "recompute_budget_mb": "half"},
    "in backward": {"in_backward": True},
    "in backward, recompute": {"in_backward": True, "recompute": True},
}


def step(size: dict[str, int], device: torch.device, parts: bool) -> None:
    print("| way | peak, MiB | without weights, gradients, state | of plain | seconds |\n|---|---|---|---|---|")
    if device.type == "cpu":
        FakeTensor.__bool__ = lambda self: True  # of a gradient's norm, asked whether it is finite
        with FakeTensorMode():
            return _steps(size, device, parts)
    return _steps(size, device, parts)


def _steps(size: dict[str, int], device: torch.device, parts: bool) -> None:
    half = plain = None
    for name, way in WAYS.items():
        way = {key: half if value == "half" else value for key, value in way.items()}
        peak, base, seconds, kept = one_way(size, device, parts=parts, **way)
        if name == "plain":
            plain, half = peak, kept / 2 / 1e6
        share = "" if plain is None else f"{peak / plain:.2f}"
        print(f"| {name} | {peak:.0f} | {peak - base:.0f} | {share} | {seconds:.2f} |", flush=True)


def one_way(
    size: dict[str, int], device: torch.device, *, parts: bool, fused: bool = True, in_backward: bool = False, **layout: Any
) -> tuple[float, float, float, float]:
    """Peak MiB of a later step; MiB of weights, gradients and state; seconds; bytes that blocks keep."""
    from benchmarks.model_step import ours
    from llmfactory.kernel.linear import quicken
    from llmfactory.parallel.in_backward import InBackward
    from llmfactory.parallel.recompute import counted, recompute
    from llmfactory.parallel.shard import units
    from llmfactory.parallel.spec import Mesh

    with device:
        model, loss_of = ours("llama", size, fused)
    if device.type != "cpu":
        model.to(device)
    model.train()
    quicken(model)
    if layout:
        recompute(model, Mesh(**layout))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    stepping = InBackward(optimizer) if in_backward else None
    tokens = torch.randint(0, size["vocab"], (size["rows"], size["length"] + 1), device=device)

    def action() -> None:
        with device:
            loss_of(tokens).backward()
        if stepping is not None:
            stepping.finish()
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    for _ in range(3 if layout.get("recompute_budget_mb") else 1):  # the state is there, and a budget has seen its blocks
        action()
    state = [x for one in optimizer.state.values() for x in one.values() if isinstance(x, torch.Tensor)]
    there = {"weights": [p.data for p in model.parameters()], "optimizer's state": state, "tokens": [tokens]}
    peak, seconds = peak_of(action, there, parts)
    copies = 3 if in_backward else 4
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    kept = 0
    if not layout and fused and not in_backward:
        sizes: list[int] = []
        for block in units(model):
            block.forward = _counting(block, block.forward, sizes, counted)  # type: ignore[method-assign]
        with device:
            loss_of(tokens)
        kept = sum(sizes)
    return peak, copies * weights / MIB, seconds, kept


def _counting(block: Any, forward: Any, sizes: list[int], counted: Any) -> Any:
    def run(*given: Any, **named: Any) -> Any:
        with counted(block) as storages:
            y = forward(*given, **named)
        sizes.append(sum(storages.values()))
        return y

    return run


# ---- head and loss


def head(device: torch.device, vocab: int, tokens: int, width: int) -> None:
    if device.type == "cpu":
        with FakeTensorMode():
            return _heads(device, vocab, tokens, width)
    return _heads(device, vocab, tokens, width)


def _heads(device: torch.device, vocab: int, tokens: int, width: int) -> None:
    from llmfactory.kernel.linear_cross_entropy import linear_cross_entropy, reference

    hidden = torch.randn(tokens, width, device=device, requires_grad=True)
    weight = torch.randn(vocab, width, device=device, requires_grad=True)
    labels = torch.randint(0, vocab, (tokens,), device=device)
    there = [hidden.data, weight.data, labels]
    base = sum(x.nbytes for x in there) / MIB
    print(f"V = {vocab}, {tokens} tokens, width {width}, float32; hidden vectors and matrix themselves: {base:.0f} MiB\n")
    print("| terms | whole logits, MiB | chunks | ratio |\n|---|---|---|---|")
    for name, terms in {"plain": {}, "smoothed": {"label_smoothing": 0.1}, "capped": {"softcap": 30.0}}.items():
        peaks = []
        for function in (reference, linear_cross_entropy):

            def action(function: Any = function, terms: Any = terms) -> None:
                (function(hidden, weight, labels, **terms) / tokens).backward()
                hidden.grad = weight.grad = None

            peaks.append(peak_of(action, {"given": there})[0] - base)
        print(f"| {name} | {peaks[0]:.0f} | {peaks[1]:.0f} | {peaks[1] / peaks[0]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "head"))
    parser.add_argument("--size", choices=SIZES, default="llama")
    parser.add_argument("--parts", action="store_true", help="say of what each peak consists (counted on a CPU)")
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=384)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.what == "head":
        head(device, arguments.vocab, arguments.tokens, arguments.width)
    else:
        step(SIZES[arguments.size], device, arguments.parts)


if __name__ == "__main__":
    main()
