"""Documents to token files: order, chunks, progress, whatever the number of threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import llmfactory.data.encode as encode_module
from llmfactory.data.source.document import Document
from llmfactory.data.spool import Spool
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokens import TokenFile

TEXTS = ["first", "", "second document", "ä", "last " * 50]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("chunk", [1, 30, 1 << 18])
def test_the_stream_is_the_documents_in_the_order_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, chunk: int
) -> None:
    monkeypatch.setattr(encode_module, "CHUNK", chunk)
    spool = Spool(tmp_path / "spool")
    for text in TEXTS:
        spool.add(Document("", text, ""))
    asked, done = [4, 0, 1, 3, 2], []
    files = tmp_path / "t.bin", tmp_path / "t.offsets"
    count = encode_module.encode(ByteTokenizer(), spool, asked, *files, workers=workers, progress=done.append)
    spool.close()
    tokens = TokenFile(*files, np.dtype("<u2"), 256)
    assert [bytes(tokens.document(i)).decode() for i in range(tokens.documents)] == [TEXTS[i] for i in asked]
    assert count == len(tokens.tokens) == tokens.targets + 1
    assert tokens.tokens[tokens.offsets].tolist() == [256] * 6
    assert done == sorted(done)
    assert done[-1] == sum(len(text.encode()) for text in TEXTS)


def test_no_document_gives_one_end(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    files = tmp_path / "t.bin", tmp_path / "t.offsets"
    assert encode_module.encode(ByteTokenizer(), spool, [], *files, workers=1, progress=print) == 1
    spool.close()
    assert TokenFile(*files, np.dtype("<u2"), 256).tokens.tolist() == [256]


@pytest.mark.parametrize("workers", [1, 3])
def test_as_many_texts_at_once_as_there_are_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Each task waits until as many tasks run as there are workers, so fewer would never get on."""
    monkeypatch.setattr(encode_module, "CHUNK", 1)
    together = threading.Barrier(workers)
    running, most, lock = 0, 0, threading.Lock()

    class Waiting(ByteTokenizer):
        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            together.wait(timeout=30)
            with lock:
                running -= 1
            return super().encode_batch(texts)

    spool = Spool(tmp_path / "spool")
    for number in range(6):
        spool.add(Document("", f"text {number}", ""))
    files = tmp_path / "t.bin", tmp_path / "t.offsets"
    encode_module.encode(Waiting(), spool, list(range(6)), *files, workers=workers, progress=lambda done: None)
    spool.close()
    assert most == workers
