"""The temporary file of documents."""

from __future__ import annotations

from pathlib import Path

from llmfactory.data.source.document import Document
from llmfactory.data.spool import Spool


def test_documents_come_back_in_any_order_also_when_more_are_added(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    texts = ["one", "", "drei ä\r\n", "x" * 5000]
    for i, text in enumerate(texts[:2]):
        spool.add(Document(f"name {i}", text, "g"))
    assert spool.text(0) == "one"
    assert spool.name(0) == "name 0"
    for i, text in enumerate(texts[2:], 2):
        spool.add(Document(f"name {i}", text, "h", evaluated=False))
    assert list(spool.texts([3, 1, 2, 0])) == [texts[i] for i in (3, 1, 2, 0)]
    assert [spool.name(i) for i in range(len(spool))] == [f"name {i}" for i in range(4)]
    assert [spool.size(i) for i in range(4)] == [len(text.encode()) for text in texts]
    assert spool.groups[0] == spool.groups[1] != spool.groups[2] == spool.groups[3]
    assert list(spool.evaluated) == [1, 1, 0, 0]
    spool.close()
