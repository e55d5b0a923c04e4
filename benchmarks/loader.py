"""Reading packed tokens from the page cache, T=1024, B=8, against other ways of reading the same rows.

    python benchmarks/loader.py

`slices`: slices of the memory map into a batch, what any reader must do at least. `batch`: what training gets (tokens, labels,
positions, segments, in shuffled order). `plain`: the same but for documents kept apart. `mixture`: three sources, 3 : 2 : 1.
`best_fit`, `document`, `grouped`: the other packings (padding counts as a token). `nanoGPT`: tokens and labels as its `get_batch`
reads them: random places, a slice and a conversion a row, stacked. `DataLoader`: a Dataset whose items are one row's tokens and
labels, default collation, shuffled, no workers. `datasets`: rows saved to disk by Hugging Face's library, read the same way in its
torch format.
Each sample is a process; times are CPU time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmfactory.data.loader import StepLoader
from llmfactory.data.mix.mixed_rows import MixedRows
from llmfactory.data.mix.spec import Fixed
from llmfactory.data.pack.rows import Rows
from llmfactory.data.pack.spec import BestFit, Concat, Document, Grouped
from llmfactory.data.tokens import TokenFile

T, B, STEPS, TOKENS, DOCUMENT = 1024, 8, 2000, 20_000_000, 1300


def corpus(folder: Path, name: str = "t", tokens: int = TOKENS) -> TokenFile:
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(1 + generator.geometric(1 / DOCUMENT, tokens // DOCUMENT))]).astype("<i8")
    stream = generator.integers(1, 4096, int(offsets[-1]) + 1).astype("<u2")
    stream[offsets] = 0
    stream.tofile(folder / f"{name}.bin")
    offsets.tofile(folder / f"{name}.offsets")
    return TokenFile.beside(folder / f"{name}.bin", np.dtype("<u2"), 0)


def slices(tokens: TokenFile) -> Iterator[object]:
    rows = np.random.default_rng(0).integers(0, tokens.inputs // T - 1, (STEPS, B)).tolist()
    for step in rows:
        batch = np.empty((B, T), np.int64)
        for place, row in enumerate(step):
            batch[place] = tokens.tokens[row * T : row * T + T]
        yield batch


def nano_gpt(tokens: TokenFile) -> Iterator[object]:
    import torch

    while True:
        data = np.memmap(tokens.path, "<u2", "r")  # anew each time, as there
        places = torch.randint(len(data) - T, (B,))
        inputs = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in places])
        labels = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in places])
        yield inputs, labels


def data_loader(tokens: TokenFile) -> Iterator[object]:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return tokens.inputs // T

        def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
            stream = torch.from_numpy(tokens.tokens[row * T : row * T + T + 1].astype(np.int64))
            return stream[:-1], stream[1:]

    yield from DataLoader(Rows(), batch_size=B, shuffle=True)


def hugging_face(tokens: TokenFile) -> Iterator[object]:
    from datasets import Dataset, load_from_disk
    from torch.utils.data import DataLoader

    folder = tokens.path.with_suffix(".hf")
    if not folder.exists():
        count = tokens.inputs // T
        ids, labels = tokens.tokens[: count * T].reshape(count, T), tokens.tokens[1 : count * T + 1].reshape(count, T)
        Dataset.from_dict({"input_ids": list(ids), "labels": list(labels)}).save_to_disk(str(folder))
    rows: Any = load_from_disk(str(folder)).with_format("torch")
    yield from DataLoader(rows, batch_size=B, shuffle=True)


def packed(build: Callable[[TokenFile], Rows]) -> Callable[[TokenFile], Iterator[object]]:
    def batches(tokens: TokenFile) -> Iterator[object]:
        yield from StepLoader(build(tokens), batch_size=B, seed=0)

    return batches


def mixture(tokens: TokenFile) -> Rows:
    others = [corpus(tokens.path.parent, name, TOKENS // 2) for name in ("u", "v")]
    sources = {file.path.stem: Concat().build(file, T) for file in (tokens, *others)}
    return MixedRows(sources, Fixed(weights={"t": 3, "u": 2, "v": 1}), STEPS, B)


READERS: dict[str, Callable[[TokenFile], Iterator[Any]]] = {
    "DataLoader": data_loader,
    "nanoGPT": nano_gpt,
    "datasets": hugging_face,
    "slices": slices,
    "plain": packed(lambda tokens: Concat(isolate=False).build(tokens, T)),
    "batch": packed(lambda tokens: Concat().build(tokens, T)),
    "mixture": packed(mixture),
    "best_fit": packed(lambda tokens: BestFit().build(tokens, T)),
    "document": packed(lambda tokens: Document().build(tokens, T)),
    "grouped": packed(lambda tokens: Grouped().build(tokens, T)),
}


def measure(name: str) -> None:
    """Nanoseconds a token, the best of five passes; what is done before the first batch does not count."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = corpus(Path(folder))
        best = float("inf")
        for _ in range(5):
            batches, read = READERS[name](tokens), 0
            next(batches)
            steps = 200 if name == "datasets" else STEPS - 1
            start = time.process_time()
            for _ in islice(batches, steps):
                read += B * T
            best = min(best, (time.process_time() - start) / read)
    print(best * 1e9)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        from harness import interleave

        numbers = interleave({name: [__file__, name] for name in READERS}, "DataLoader", rounds=3, unit="ns/token")
        for name, values in numbers.items():
            print(f"{name}: {1e3 / sorted(values)[len(values) // 2]:.0f} M tokens/s")
