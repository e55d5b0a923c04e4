"""Which files names, folders and globs stand for, and links that lead in circles or nowhere."""

from __future__ import annotations

import glob
import os
import random
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data.source.paths import resolve, walk


def names(found: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    random_ = random.Random(0)
    for _ in range(150):
        parts = [random_.choice(["a", "b", ".c", "d e", "x[1]"]) for _ in range(random_.randrange(4))]
        path = tmp_path.joinpath(*parts, random_.choice(["f.txt", "g.txt", ".h.txt", "f1.md", "[x].txt"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    [
        "**/*.txt",
        "**",
        "a/**/f.txt",
        "**/a/*",
        "**/[fg].txt",
        "**/[!f]*.txt",
        "**/.c/*",
        "**/f?.md",
        "*/**/b/**/*.txt",
        "**/d e/**",
    ],
)
def test_globs_match_what_python_s_match(tree: Path, pattern: str) -> None:
    expected = sorted({Path(path) for path in glob.glob(str(tree / pattern), recursive=True) if Path(path).is_file()})
    assert expected
    assert resolve([str(tree / pattern)], [".txt"]) == expected


def test_loops_of_links_end_and_each_file_comes_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one.txt").touch()
    (tmp_path / "a" / "two.txt").touch()
    for i in range(4):  # 4 loops in a folder are 4^40 paths
        (tmp_path / "a" / "b" / f"loop{i}").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "0").symlink_to(tmp_path / "a", target_is_directory=True)
    for name in (".", "**/*.txt"):
        assert names(resolve([str(tmp_path / name)], [".txt"]), tmp_path) == ["a/b/one.txt", "a/two.txt"]
    assert len(list(walk(tmp_path))) == 2


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one.txt").touch()
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    assert names(resolve([str(tmp_path / "job")], [".txt"]), tmp_path) == ["job/link/one.txt"]


@pytest.mark.parametrize("given", ["{0}", "{0}/x.txt", "{0}/*.txt", "{0}/**/*.txt"])
@pytest.mark.parametrize(
    ("target", "said"), [("x.txt", "a link that leads back to itself"), ("gone", "a link to gone, which is not there")]
)
def test_a_link_without_end_is_named(tmp_path: Path, given: str, target: str, said: str) -> None:
    (tmp_path / "x.txt").symlink_to(target)
    with pytest.raises(UserError, match=f"{tmp_path}/x.txt is {said}"):
        resolve([given.format(tmp_path)], [".txt"])


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(UserError, match=f"cannot read the folder {tmp_path}: Permission denied"):
        resolve([str(tmp_path)], [".txt"])


@pytest.mark.parametrize(
    ("name", "said"),
    [("none", "no such file"), ("*.txt", "nothing matches"), ("**/*.txt", "nothing matches"), (".", "no .txt or .md file")],
)
def test_nothing_is_an_error(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match=said):
        resolve([str(tmp_path / name)], [".txt", ".md"])


def test_names_of_any_bytes(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    path.touch()
    assert resolve([str(tmp_path)], [".txt"]) == [path]
