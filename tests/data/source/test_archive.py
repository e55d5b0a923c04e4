"""Names of members that lead out, and archives that are damaged where Python's readers take them for whole."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

import llmfactory.data.source.files as files
from llmfactory.core.errors import UserError
from llmfactory.data.source.archive import leads_out
from llmfactory.data.source.spec import Files
from tests.data.source.conftest import Read


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("a/b.txt", False),
        ("a/..b/c...txt", False),
        ("./a", False),
        ("..", True),
        ("../a", True),
        ("a/../b", True),
        ("/a", True),
        ("\\a", True),
        ("a\\..\\b", True),
        ("C:\\a", True),
    ],
)
def test_names_that_lead_out(name: str, out: bool) -> None:
    assert leads_out(name) == out


def tar(members: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        for i in range(members):
            info = tarfile.TarInfo(f"{i}.txt")
            info.size = 512
            file.addfile(info, io.BytesIO(b"%d" % i * 512))
    return packed.getvalue()


@pytest.mark.parametrize("end", [512 * 4, 512 * 4 + 100, 512 * 5, 512 * 5 + 100])
def test_a_tar_that_ends_at_any_place_is_truncated(read: Read, tmp_path: Path, end: int) -> None:
    """Python's reader takes an end between two members, or within a header, for the end of the archive."""
    path = tmp_path / "a.tar"
    path.write_bytes(tar(5)[:end])
    with pytest.raises(UserError, match=rf"{path}.*(truncated tar archive|damaged: unexpected end)"):
        read(Files(files=[str(path)]))
    documents, account = read(Files(files=[str(path)], bad_share=1.0))
    assert len(documents) == 2
    assert account.bads


def test_a_tar_with_a_damaged_header_is_said_to_be(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    data = bytearray(tar(5))
    data[512 * 4 + 10] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path}.*damaged"):
        read(Files(files=[str(path)]))


def test_links_and_folders_in_a_tar_are_no_files(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link.txt", tarfile.SYMTYPE), ("pipe.txt", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    documents, account = read(Files(files=[str(path)]))
    assert documents == []
    assert {reason: drop.documents for reason, drop in account.drops.by_reason.items()} == {
        "no file of its own, but a link or device": 2
    }


def test_a_damaged_or_locked_member_of_a_zip_is_set_aside_alone(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for i in range(4):
            file.writestr(f"{i}.txt", f"text {i} of some length")
    data = bytearray(path.read_bytes())
    data[data.index(b"text 1")] ^= 1  # a wrong checksum
    data[data.rindex(b"PK\x01\x02", 0, data.index(b"3.txt", 300)) + 8] |= 1  # needs a password
    path.write_bytes(data)
    documents, account = read(Files(files=[str(path)], bad_share=1.0))
    assert {d.text for d in documents} >= {"text 0 of some length", "text 2 of some length"}
    assert {bad.where for bad in account.bads} == {f"{path}: 1.txt", f"{path}: 3.txt"}
    with pytest.raises(UserError, match=r"a\.zip: 1\.txt: damaged: Bad CRC"):
        read(Files(files=[str(path)]))


def test_members_are_read_in_groups(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for i in range(25):
            file.writestr(f"{i:02}.txt", f"text {i}" * (1 + i % 3))
    spec = Files(files=[str(path)])
    whole = read(spec)[0]
    assert len(whole) == 25
    monkeypatch.setattr(files, "UNIT", 50)
    units = spec.build().units()
    assert len(units) > 3
    assert read(spec)[0] == whole
    assert sum(unit.size for unit in units) == sum(len(d.text) for d in whole)
