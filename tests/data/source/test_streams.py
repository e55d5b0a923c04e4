"""Unpacking against the standard library's own, cut at every byte; lines against `splitlines`."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable
from typing import Any

import pytest

from llmfactory.data.source.streams import Budget, Compression, Damaged, lines, seek_line, unpacked, whole, zstd

PACK: dict[Compression, Callable[..., bytes]] = {
    Compression.gz: gzip.compress,
    Compression.zst: zstd.compress,
    Compression.xz: lzma.compress,
    Compression.bz2: bz2.compress,
}


def unpack(data: bytes, kind: Compression, **budget: Any) -> bytes:
    return unpacked(io.BytesIO(data), kind, Budget(len(data), budget.get("max_expansion", 1000.0))).read()


@pytest.mark.parametrize("kind", Compression)
def test_it_gives_what_was_packed(kind: Compression) -> None:
    noise = random.Random(0).randbytes(300_000)
    for content in (b"", b"x", b"line\n" * 1000, noise, noise * 4 + b"a" * 1_500_000):
        assert unpack(PACK[kind](content), kind) == content
        assert unpack(PACK[kind](content) + PACK[kind](b"and more"), kind) == content + b"and more"


@pytest.mark.parametrize("kind", [Compression.gz, Compression.xz])
def test_padding_behind_it_is_no_content(kind: Compression) -> None:
    assert unpack(PACK[kind](b"text") + b"\x00" * 400_000, kind) == b"text"
    assert unpack(PACK[kind](b"a") + b"\x00" * 8 + PACK[kind](b"b"), kind) == b"ab"


@pytest.mark.parametrize("kind", Compression)
def test_cut_anywhere_it_is_said_to_be_truncated(kind: Compression) -> None:
    packed = PACK[kind](random.Random(1).randbytes(300) + b"text " * 50)
    for end in range(1, len(packed)):
        with pytest.raises(Damaged, match="truncated"):
            unpack(packed[:end], kind)


@pytest.mark.parametrize("kind", Compression)
def test_a_changed_byte_or_text_behind_it_is_damage(kind: Compression) -> None:
    packed = PACK[kind](random.Random(2).randbytes(1000))
    changed = bytearray(packed)
    changed[500] ^= 0x55
    if kind is not Compression.zst:  # whose frames carry no checksum unless asked for
        with pytest.raises(Damaged):
            unpack(bytes(changed), kind)
    with pytest.raises(Damaged, match=f"damaged {kind.name} data"):
        unpack(packed + b"this is no packed data, is it?", kind)


@pytest.mark.parametrize("kind", Compression)
def test_unpacking_stops_at_the_budget_and_holds_little(kind: Compression) -> None:
    packed = PACK[kind](b"\x00" * (70 << 20))
    seen = 0
    stream = unpacked(io.BytesIO(packed), kind, Budget(len(packed), 1.0))
    with pytest.raises(Damaged, match=r"unpacks to too much.*max_expansion=10"):
        while data := stream.read1(1 << 20):  # type: ignore[attr-defined]
            assert len(data) <= 1 << 20
            seen += len(data)
    assert seen <= (64 << 20) + len(packed)


@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\nb", b"a\n\nbc\r\n", b"long line here\nx\n"])
@pytest.mark.parametrize("limit", [1, 3, 5, 100])
def test_lines_are_those_of_splitlines(text: bytes, limit: int) -> None:
    expected = text.split(b"\n")
    expected = [line + b"\n" for line in expected[:-1]] + ([expected[-1]] if expected[-1] else [])
    found = list(lines(io.BytesIO(text), limit, 5))
    assert [number for number, _, _ in found] == list(range(5, 5 + len(expected)))
    for (_, line, size), original in zip(found, expected, strict=True):
        if size > len(line):
            assert original.startswith(line)
            assert len(line) <= limit < size
            assert size == max(len(original), limit + 1)
        else:
            assert line == original
            assert len(original.rstrip(b"\n")) <= limit


def test_every_line_begins_in_one_range() -> None:
    random_ = random.Random(3)
    text = b"".join(b"x" * random_.randrange(6) + b"\n" for _ in range(60)) + b"end"
    starts = [0] + [i + 1 for i, byte in enumerate(text) if byte == 10]
    for step in (1, 2, 3, 7, 100):
        for start in range(0, len(text), step):
            file = io.BytesIO(text)
            within = seek_line(file, start)
            expected = next((place for place in starts if place >= start), len(text))
            assert file.tell() == expected
            assert within == (start not in starts)


def test_a_whole_file_is_bounded() -> None:
    assert whole(io.BytesIO(b"abc"), 3) == b"abc"
    with pytest.raises(Damaged, match=r"more than data.source.max_record_bytes=2"):
        whole(io.BytesIO(b"abc"), 2)
