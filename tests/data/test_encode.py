"""Documents to token files: order, chunks, progress, whatever the number of threads."""

from __future__ import annotations

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
