"""Members of zip and tar archives. Nothing is unpacked to disk."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

from llmfactory.data.source.account import Account
from llmfactory.data.source.streams import BLOCK, Budget, Counted, Damaged

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, NotImplementedError, RuntimeError)
"""RuntimeError: a password is needed."""
TAR_ERRORS = (tarfile.TarError, EOFError)
Members = Iterator[tuple[str, BinaryIO, int]]
"""(name of the archive and of the member, its content, bytes of it as they stand in the archive)"""


def leads_out(name: str) -> bool:
    """Whether a member, if it were written to disk, would land outside the folder it is unpacked to."""
    path = name.replace("\\", "/")
    return path.startswith("/") or path[1:2] == ":" or ".." in PurePosixPath(path).parts


def zip_pieces(path: Path, size: int) -> list[tuple[int, int, int]]:
    """(first member, last + 1, bytes that they take unpacked): runs of members of about `size` bytes."""
    with _zip(path) as archive:
        sizes = [info.file_size for info in archive.infolist()]
    runs, first, taken = [], 0, 0
    for i, member in enumerate(sizes):
        taken += member
        if taken >= size or i == len(sizes) - 1:
            runs.append((first, i + 1, taken))
            first, taken = i + 1, 0
    return runs


def zip_members(path: Path, first: int, last: int, max_expansion: float, account: Account) -> Members:
    with _zip(path) as archive:
        members = archive.infolist()[first:last]
        budget = Budget(sum(info.compress_size for info in members), max_expansion)
        for info in members:
            name = f"{path}: {info.filename}"
            if info.is_dir():
                continue
            if leads_out(info.filename):
                account.bad(name, "a path outside of the archive", size=info.file_size)
                continue
            try:
                with archive.open(info) as file:
                    yield name, io.BufferedReader(Counted(file, budget, ZIP_ERRORS), BLOCK), info.file_size
            except ZIP_ERRORS as error:
                account.bad(name, "cannot be unpacked", str(error) or type(error).__name__, info.compress_size)


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise Damaged("no zip archive, or a truncated one", str(error)) from error


class Header(tarfile.TarInfo):
    """Python's reader takes a header that is damaged or cut off for the end of the archive."""

    ENDS: ClassVar[tuple[type[Exception], ...]] = (
        tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
        tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
        tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
    )

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> Header:
        try:
            return super().fromtarfile(tarfile)
        except cls.ENDS as error:
            raise Damaged("a damaged or truncated tar archive", str(error)) from error


def tar_members(path: Path, stream: BinaryIO, budget: Budget, account: Account) -> Members:
    """From a stream, in order; the archive is never held as a whole."""
    try:
        archive = tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK, tarinfo=Header)  # noqa: SIM115
    except TAR_ERRORS as error:
        raise Damaged("no tar archive", str(error)) from error
    with archive:
        while True:
            try:
                info = archive.next()
            except TAR_ERRORS as error:
                raise Damaged("a damaged or truncated tar archive", str(error)) from error
            if info is None:
                return
            archive.members = []  # type: ignore[attr-defined]  # which otherwise grow with the archive
            name = f"{path}: {info.name}"
            if info.isdir():
                continue
            if leads_out(info.name):
                account.bad(name, "a path outside of the archive", size=info.size)
            elif not info.isreg():
                account.left_out("no file of its own, but a link or device", name)
            else:
                file = archive.extractfile(info)
                assert file
                yield name, io.BufferedReader(Counted(file, budget, TAR_ERRORS), BLOCK), info.size
