"""Documents to token files. Threads tokenize, as the libraries that do it hold no lock; the order is that of the documents."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from llmfactory.data.spool import Spool
from llmfactory.data.tokenizer.tokenizer import Tokenizer
from llmfactory.data.tokens import dtype_for

CHUNK = 1 << 18
"""Bytes of text that one task tokenizes. At most twice as many tasks as threads wait, so memory stays bounded."""


def encode(
    tokenizer: Tokenizer,
    spool: Spool,
    indices: Sequence[int],
    path: Path,
    offsets_path: Path,
    *,
    workers: int,
    progress: Callable[[int], None],
) -> int:
    """Write both files; the number of tokens, ends included."""
    dtype = dtype_for(tokenizer.vocab_size)
    end = np.array([tokenizer.end_id], dtype)
    place, done = 0, 0
    with path.open("wb") as file, offsets_path.open("wb") as offsets, one_library_thread():
        for size, documents in _in_order(tokenizer, _chunks(spool, indices), workers):
            for ids in documents:
                np.array([place], "<i8").tofile(offsets)
                place += 1 + len(ids)
            file.write(np.concatenate([part for ids in documents for part in (end, np.array(ids, dtype))]).tobytes())
            done += size
            progress(done)
        np.array([place], "<i8").tofile(offsets)
        file.write(end.tobytes())
        for written in (file, offsets):
            written.flush()
            os.fsync(written.fileno())
    return place + 1


def _chunks(spool: Spool, indices: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
    texts: list[str] = []
    size = 0
    for index in indices:
        texts.append(spool.text(index))
        size += spool.size(index)
        if size >= CHUNK:
            yield size, texts
            texts, size = [], 0
    if texts:
        yield size, texts


def _in_order(
    tokenizer: Tokenizer, chunks: Iterator[tuple[int, list[str]]], workers: int
) -> Iterator[tuple[int, list[list[int]]]]:
    waiting: deque[tuple[int, Future[list[list[int]]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for size, texts in chunks:
            waiting.append((size, pool.submit(tokenizer.encode_batch, texts)))
            if len(waiting) > 2 * workers:
                yield waiting[0][0], waiting.popleft()[1].result()
        while waiting:
            yield waiting[0][0], waiting.popleft()[1].result()


@contextmanager
def one_library_thread() -> Iterator[None]:
    """Keep `tokenizers` from starting a pool in each of our threads: there are as many as were asked for."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
