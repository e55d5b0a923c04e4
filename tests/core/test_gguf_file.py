"""Metadata and tables of GGUF files, and everything that can be wrong with them."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.core.gguf_file import read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def written(
    values: list[bytes] | None = None, tensors: list[bytes] | None = None, data: bytes = b"", version: int = 3, **claimed: int
) -> bytes:
    values, tensors = values or [], tensors or []
    header = struct.pack("<IQQ", version, claimed.get("n_tensors", len(tensors)), claimed.get("n_values", len(values)))
    content = b"GGUF" + header + b"".join(values) + b"".join(tensors)
    return content + b"\0" * (-len(content) % 32) + data


def number(key: str, value: int, kind: int = 4) -> bytes:
    return text(key) + struct.pack("<II", kind, value)


def tensor(name: str, shape: list[int], offset: int, kind: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def read(tmp_path: Path, content: bytes) -> Any:
    (tmp_path / "x.gguf").write_bytes(content)
    return read_gguf(tmp_path / "x.gguf")


def test_it_reads_what_the_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = {"a": "ä", "b": True, "c": -3, "d": 0.5, "e": ["x", "yz"], "f": [1, 2, 3]}
    writer.add_string("a", "ä")
    writer.add_bool("b", True)
    writer.add_int16("c", -3)
    writer.add_float64("d", 0.5)
    writer.add_array("e", ["x", "yz"])
    writer.add_array("f", [1, 2, 3])
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    quantized = gguf.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("one", numbers)
    writer.add_tensor("two", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    assert file.metadata == {"general.architecture": "llama", **values}
    one, two = file.tensors["one"], file.tensors["two"]
    assert (one.dtype, one.shape, two.dtype, two.shape, two.size) == ("F32", (2, 3), "Q8_0", (4, 64), 4 * 2 * 34)
    assert path.read_bytes()[one.offset : one.offset + one.size] == numbers.tobytes()
    assert path.read_bytes()[two.offset : two.offset + two.size] == quantized.tobytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no GGUF file: it is empty"),
        (b"PK\x03\x04 and so on", "no GGUF file: it begins with"),
        (b"GGU", "lacks 1 bytes"),
        (written(version=1), "is GGUF version 1; versions 2 and 3 can be read"),
        (written(version=3 << 24), "is GGUF of big-endian numbers"),
        (written(n_values=2**60), "claims 1152921504606846976 entries"),
        (written(n_tensors=2**60), "claims 1152921504606846976 entries"),
        (written([struct.pack("<Q", 2**62) + b"abc"]), "claims 4611686018427387904 entries"),
        (written([text("a") + struct.pack("<IIQ", 9, 4, 2**61)]), "claims 2305843009213693952 entries"),
        (written([text("a") + struct.pack("<IIQ", 9, 9, 1)]), "an array of the unknown type 9"),
        (written([number("a", 1, kind=99)]), "a value of the unknown type 99"),
        (written([number("a", 1), number("a", 2)]), "the key a stands in it twice"),
        (written([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)]), "is not UTF-8"),
        (written([number("general.alignment", 0)]), "general.alignment is 0"),
        (written([number("general.alignment", 12)]), "general.alignment is 12"),
        (written(tensors=[tensor("t", [4], 0)], data=b"1234567"), r"t \[4\] of F32 would end at byte .*, the file ends at"),
        (written(tensors=[tensor("t", [4], 2**63)], data=b"\0" * 16), "would end at byte"),
        (written(tensors=[tensor("t", [2**40, 2**40], 0)], data=b"\0" * 16), "would end at byte"),
        (written(tensors=[tensor("t", [4], 0, kind=77)], data=b"\0" * 16), "t has the type 77, which gguf .* does not know"),
        (written(tensors=[tensor("t", [33], 0, kind=8)], data=b"\0" * 99), "rows of 33 numbers, which Q8_0 cannot store"),
        (written(tensors=[tensor("t", [1] * 5, 0)], data=b"\0" * 16), "t has 5 dimensions"),
        (written(tensors=[tensor("t", [2], 0), tensor("t", [2], 32)], data=b"\0" * 64), "the tensor t stands in it twice"),
        (written(tensors=[tensor("t", [9], 0), tensor("u", [2], 32)], data=b"\0" * 64), "t and u lie over each other"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        read(tmp_path, content)
    assert str(tmp_path / "x.gguf") in str(raised.value)


def test_cut_off_anywhere_it_is_refused(tmp_path: Path) -> None:
    values = [number("a", 1), text("b") + struct.pack("<I", 8) + text("text")]
    whole = written(values, [tensor("t", [4], 0)], b"\0" * 16)
    read(tmp_path, whole)
    for length in range(len(whole)):
        with pytest.raises(UserError):
            read(tmp_path, whole[:length])


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"reading x.gguf needs the package 'gguf'.*pip install 'llmfactory\[gguf\]'"):
        read(tmp_path, written(tensors=[tensor("t", [4], 0)], data=b"\0" * 16))
