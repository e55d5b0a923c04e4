"""Shards: what was added comes back, from anywhere, and damage is seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from llmfactory.data.checksum import Damaged
from llmfactory.data.shard import ABOUT, TEXTS, Entry, Shard, Shards, ShardWriter, check_about, forget_texts, group_number

TEXTS_OF = ["first", "", "zwölf Boxkämpfer", "数据\n数据", "😀" * 50, "x" * 5000, "last"]


def write(folder: Path, texts: list[str], source: str = "given") -> Shard:
    folder.mkdir(parents=True)
    with ShardWriter(folder, source) as writer:
        for number, text in enumerate(texts):
            assert writer.add(f"näme {number}", text, group_number(text), number % 2 == 0) == len(text.encode())
        writer.close(more=[1, 2])
    return Shard(folder)


def test_documents_come_back(tmp_path: Path) -> None:
    shard = write(tmp_path / "0", TEXTS_OF)
    expected = [Entry(f"näme {i}", text, group_number(text), i % 2 == 0) for i, text in enumerate(TEXTS_OF)]
    assert list(shard.read()) == expected
    assert list(shard.read(2, 5)) == expected[2:5]
    assert list(shard.read(7)) == list(shard.some([])) == []
    order = random.Random(0).sample(range(7), 7)
    assert list(shard.some(order)) == [expected[i] for i in order]
    assert [shard.entry(i) for i in range(7)] == expected
    assert shard.sizes.tolist() == [len(text.encode()) for text in TEXTS_OF]
    assert (len(shard), shard.bytes, shard.about["more"], shard.source) == (7, sum(shard.sizes), [1, 2], "given")


def test_pieces_cover_every_document_once(tmp_path: Path) -> None:
    write(tmp_path / "00000", TEXTS_OF)
    write(tmp_path / "00001", [])
    write(tmp_path / "00002", TEXTS_OF[::-1])
    shards = Shards.of(tmp_path)
    for size in (1, 7, 100, 5000, 1 << 20):
        pieces = shards.pieces(size)
        covered = [shards.starts[piece.shard] + i for piece in pieces for i in range(piece.first, piece.stop)]
        assert covered == list(range(14))
        assert [piece.start for piece in pieces] == [shards.starts[piece.shard] + piece.first for piece in pieces]
        assert sum(piece.bytes for piece in pieces) == shards.bytes
        assert all(piece.stop > piece.first for piece in pieces)
    assert len(shards.pieces(1 << 20)) == 2
    assert [shards.entry(i).text for i in range(14)] == TEXTS_OF + TEXTS_OF[::-1]


@pytest.mark.parametrize("harm", ["truncated", "altered", "gone"])
@pytest.mark.parametrize("file", [TEXTS, "names.bin", "index.npy", ABOUT])
def test_damage_is_seen(tmp_path: Path, file: str, harm: str) -> None:
    write(tmp_path / "0", TEXTS_OF)
    path = tmp_path / "0" / file
    raw = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(raw[:-3])
    elif file == ABOUT:
        path.write_bytes(raw.replace(b'"files"', b'"piles"'))
    else:
        path.write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    with pytest.raises(Damaged, match=file):
        check_about(tmp_path / "0")


def test_forgotten_texts_leave_a_shard_that_counts(tmp_path: Path) -> None:
    shard = write(tmp_path / "0", TEXTS_OF)
    forget_texts(shard.folder)
    forget_texts(shard.folder)
    again = Shard(tmp_path / "0", check_about(tmp_path / "0"))
    assert not (tmp_path / "0" / TEXTS).exists()
    assert (len(again), again.sizes.tolist()) == (7, [len(text.encode()) for text in TEXTS_OF])
