"""The table of a safetensors file, and everything that can be wrong with it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llmfactory.core.errors import UserError
from llmfactory.core.safetensors_file import read_table


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


def test_it_says_where_each_tensor_lies(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4).to(torch.bfloat16), "c": torch.empty(0)}
    save_file(tensors, path, {"format": "pt"})
    table = read_table(path)
    assert {name: (stored.dtype, stored.shape) for name, stored in table.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
        "c": ("F32", (0,)),
    }
    for name, tensor in tensors.items():
        content = path.read_bytes()[table[name].offset : table[name].offset + table[name].size]
        assert content == tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"{", b"", "its header is no JSON"),
        (b"[]", b"", "no table of tensors"),
        (b'{"a": 1, "a": 1}', b"", "a name stands in it twice"),
        (b"[" * 100_000, b"", "its header is no JSON"),
        ({"a": 1}, b"", "a has no dtype, shape and two data_offsets"),
        ({"a": entry(0, 4, dtype="F7")}, b"1234", "a has the dtype 'F7'"),
        ({"a": entry(0, 8, shape=[-2])}, b"12345678", r"a has the shape \[-2\]"),
        ({"a": entry(0, 8, shape=[True])}, b"12345678", r"a has the shape \[True\]"),
        ({"a": entry(0, 8, shape=[3])}, b"12345678", r"a \[3\] of F32 takes 12 bytes, its offsets say 8"),
        ({"a": entry(0, 8)}, b"1234", "its tensors end at byte .*, the file at"),
        ({"a": entry(0, 8)}, b"123456789", "its tensors end at byte .*, the file at"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"123456789012", "b begins at byte .*, the tensor before it ends at"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, b"123456789012", "b begins at byte .*, the tensor before it ends at"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, header: Any, data: bytes, said: str) -> None:
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(UserError, match=said) as raised:
        read_table(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it has 0 bytes"),
        (b"1234567", "it has 7 bytes"),
        ((10**12).to_bytes(8, "little") + b"{}", "its header claims 1000000000000 bytes, the file has 10"),
        (pickle.dumps({"a": 1}, protocol=2) * 3, "it is a pickle, which can run code"),
        (b"PK\x03\x04 and so on", "it is a pickle, which can run code"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_table(tmp_path / "x.safetensors")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.safetensors cannot be read: No such file"):
        read_table(tmp_path / "x.safetensors")
