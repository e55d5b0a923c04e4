"""Reading packed tokens from the page cache, T=1024, B=8, against a plain PyTorch DataLoader over the same rows.

    python benchmarks/loader.py

`tokens`: slices of the memory map into a batch, what any reader must do at least. `batch`: what training gets (tokens, labels,
positions, segments, in shuffled order). `plain`: the same fields but for documents kept apart. `DataLoader`: a Dataset whose items
are one row's tokens and labels, default collation, shuffled, no workers. Each sample is a process; times are CPU time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from llmfactory.data.loader import StepLoader
from llmfactory.data.pack.spec import Concat
from llmfactory.data.tokens import TokenFile

T, B, STEPS, TOKENS, DOCUMENT = 1024, 8, 2000, 20_000_000, 1300
VARIANTS = ("DataLoader", "tokens", "plain", "batch")


def corpus(folder: Path) -> TokenFile:
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(1 + generator.geometric(1 / DOCUMENT, TOKENS // DOCUMENT))]).astype("<i8")
    tokens = generator.integers(1, 4096, int(offsets[-1]) + 1).astype("<u2")
    tokens[offsets] = 0
    tokens.tofile(folder / "t.bin")
    offsets.tofile(folder / "t.offsets")
    return TokenFile(folder / "t.bin", folder / "t.offsets", np.dtype("<u2"), 0)


def tokens_only(tokens: TokenFile) -> Iterator[object]:
    rows = np.random.default_rng(0).integers(0, tokens.targets // T - 1, (STEPS, B)).tolist()
    for step in rows:
        batch = np.empty((B, T), np.int64)
        for place, row in enumerate(step):
            batch[place] = tokens.tokens[row * T : row * T + T]
        yield batch


def data_loader(tokens: TokenFile) -> Iterator[object]:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return tokens.targets // T

        def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
            stream = torch.from_numpy(tokens.tokens[row * T : row * T + T + 1].astype(np.int64))
            return stream[:-1], stream[1:]

    yield from DataLoader(Rows(), batch_size=B, shuffle=True)


def ours(isolate: bool) -> Callable[[TokenFile], Iterator[object]]:
    def batches(tokens: TokenFile) -> Iterator[object]:
        yield from StepLoader(Concat(isolate=isolate).build(tokens, T), batch_size=B, seed=0)

    return batches


def measure(name: str) -> None:
    """Nanoseconds a token, the best of five passes."""
    how = {"tokens": tokens_only, "DataLoader": data_loader, "plain": ours(False), "batch": ours(True)}[name]
    with tempfile.TemporaryDirectory() as folder:
        tokens = corpus(Path(folder))
        best = float("inf")
        for _ in range(5):
            start, read = time.process_time(), 0
            for _ in islice(how(tokens), STEPS):
                read += 1
            best = min(best, (time.process_time() - start) / (read * B * T))
    print(best * 1e9)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        from harness import interleave

        numbers = interleave({name: [__file__, name] for name in VARIANTS}, "DataLoader", rounds=5, unit="ns/token")
        for name, values in numbers.items():
            print(f"{name}: {1e3 / sorted(values)[len(values) // 2]:.0f} M tokens/s")
