"""Names, folders and globs of the user to paths. Each file comes once, whatever links lead to it, and no loop of links holds it up."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmfactory.core.errors import UserError

MANY = 20
"""From so many files on, the documents of one file are held out together; below it each document stands alone."""


def resolve(names: Sequence[str], suffixes: Sequence[str], key: str = "data.source.files") -> list[Path]:
    """Every file that the names, folders and globs stand for, each once, sorted; folders give files with these suffixes."""
    found: set[Path] = set()
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = {file for file in walk(path) if file.name.lower().endswith(tuple(suffixes))}
            if not inside:
                raise UserError(f"{key}: no {' or '.join(suffixes)} file in the folder {name}")
            found |= inside
        elif path.exists():
            found.add(path)
        elif glob.has_magic(name):
            files = set(_matches(path))
            if not files:
                raise UserError(f"{key}: nothing matches {name} (from the folder {Path.cwd()})")
            found |= files
        elif os.path.lexists(path):
            raise UserError(f"{key}: {name} is {_broken(path)}")
        else:
            raise UserError(f"{key}: no such file: {name} (from the folder {Path.cwd()})")
    for path in found:
        if not path.is_file():
            raise UserError(f"{key}: {path} is {_broken(path)}")
    return sorted(found)


def walk(folder: Path) -> Iterator[Path]:
    """Everything below that is no folder, links without an end among it. Links to folders are followed, into each folder once."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            stat = here.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(here) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"cannot read the folder {here}: {error.strerror or error}") from error
        # Real folders come before links to them, so that a file's name does not depend on where links stand.
        folders = [here / entry.name for entry in inside if _is_folder(entry)]
        waiting[:0] = [path for path in folders if path.is_symlink()]
        waiting += reversed([path for path in folders if not path.is_symlink()])
        yield from (here / entry.name for entry in inside if not _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _matches(pattern: Path) -> Iterator[Path]:
    """Files that a glob stands for; as in a shell, stars do not match a leading dot."""
    parts = pattern.parts
    if "**" not in parts:  # which alone can run in circles
        yield from (path for match in glob.iglob(str(pattern)) if not (path := Path(match)).is_dir())
        return
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:first])
    if not base.is_dir():
        return
    rule = re.compile("".join(_rule(part, last=i == len(parts) - 1) for i, part in enumerate(parts[first:], first)))
    yield from (path for path in walk(base) if rule.fullmatch(path.relative_to(base).as_posix()))


def _rule(part: str, last: bool) -> str:
    if part == "**":
        return r"(?:[^./][^/]*/)*" + (r"[^./][^/]*" if last else "")
    rule, i = "" if part.startswith(".") else r"(?!\.)", 0
    while i < len(part):
        end = part.find("]", i + 2) if part[i] == "[" else -1
        if end > 0:
            inner = part[i + 1 : end].replace("\\", r"\\")
            rule, i = rule + f"[{'^' + inner[1:] if inner[0] == '!' else inner}]", end
        else:
            rule += {"*": "[^/]*", "?": "[^/]"}.get(part[i], re.escape(part[i]))
        i += 1
    return rule + ("" if last else "/")


def _broken(path: Path) -> str:
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself"
        if path.is_symlink():
            return f"a link to {os.readlink(path)}, which is not there"
        return f"unreadable: {error.strerror}"
    return "no file"


def by_file(paths: Sequence[Path]) -> dict[Path, str]:
    """The group of each file's documents where the files are many, else nothing. No name of a folder further up is in it."""
    return {path: "/".join(path.parts[-2:]) for path in paths} if len(paths) >= MANY else {}
