"""Every planted bug is found (`-m mutation`); the list of bugs fits the code, and docs/mutations.md is about that list."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutation.killing import BUGS, PAGE, ROOT


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_planted(bug) -> None:
    text = (ROOT / "llmfactory" / bug.file).read_text(encoding="utf-8")
    assert text.count(bug.old) == 1, f"{bug.file} has changed; tests/mutation/bugs.py must follow"
    assert bug.new not in text or bug.new in bug.old


def test_there_are_enough_with_names_of_their_own() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 30
    assert len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)


def test_the_page_is_about_these_bugs_and_all_were_found() -> None:
    lines = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][2:]
    assert [cells[0].removeprefix("| ") for cells in lines] == [bug.name for bug in BUGS], "run python -m tests.mutation"
    assert not [cells[0] for cells in lines if "**nothing**" in cells[3]]


@pytest.mark.mutation
@pytest.mark.timeout(0)
def test_every_bug_is_found() -> None:
    """In a process of its own: its server must not have imported the project."""
    assert subprocess.run([sys.executable, "-m", "tests.mutation"], cwd=ROOT).returncode == 0
