"""Tasks: done once, by whoever comes, gone on with after a kill, and never silently lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmfactory.core.errors import UserError
from llmfactory.data import tasks
from llmfactory.data.lock import locked
from llmfactory.data.shard import write_about
from llmfactory.data.tasks import Interrupted, Phase, Workers, attempt, is_done, run


@dataclass(kw_only=True)
class Marking(Phase):
    """Writes its number and process; some tasks behave badly."""

    name: str = "marks"
    label: str = "marking"
    count: int = 6
    killed: int = -1
    failing: int = -1
    seconds: float = 0.0

    def sizes(self) -> Sequence[int]:
        return [10] * self.count

    def do(self, number: int, folder: Path) -> None:
        (folder / "half").write_text("half")
        with (folder.parent / "log").open("a") as log:
            log.write(f"{number}\n")
        if number == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.failing:
            raise UserError(f"task {number} is bad")
        time.sleep(self.seconds)
        (folder / "half").rename(folder / "whole")
        write_about(folder, by=os.getpid())


def quiet(label: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def logged(folder: Path) -> list[int]:
    return sorted(int(line) for line in (folder / "marks" / "log").read_text().split())


@pytest.fixture(autouse=True)
def _no_task_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ALONE", 0)


@pytest.fixture
def workers() -> object:
    made = Workers(2)
    yield made
    made.close()


def test_all_are_done_once_and_the_bar_ends_full(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    folder = run(Marking(), tmp_path, Workers(1), lambda *call: calls.append(call))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [f"{number:05d}" for number in range(6)]
    assert logged(tmp_path) == list(range(6))
    assert calls[-1] == ("marking", 60, 60)
    run(Marking(), tmp_path, Workers(1), quiet)
    assert logged(tmp_path) == list(range(6))


@pytest.mark.dist
def test_several_processes_share_them(tmp_path: Path, workers: Workers) -> None:
    folder = run(Marking(seconds=0.05), tmp_path, workers, quiet)
    assert logged(tmp_path) == list(range(6))
    assert all(is_done(folder, number) for number in range(6))


def test_damaged_and_half_done_ones_are_done_again(tmp_path: Path) -> None:
    folder = run(Marking(), tmp_path, Workers(1), quiet)
    (folder / "00002" / "whole").write_text("other")
    (folder / "00004" / "whole").unlink()
    (folder / "00003").rename(folder / "00003.tmp")
    run(Marking(), tmp_path, Workers(1), quiet)
    assert logged(tmp_path) == sorted([*range(6), 2, 3, 4])
    assert not list(folder.glob("*.tmp"))


def test_one_that_fails_leaves_the_others_and_nothing_half(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task 3 is bad"):
        run(Marking(failing=3), tmp_path, Workers(1), quiet)
    assert [number for number in range(6) if is_done(tmp_path / "marks", number)] == [0, 1, 2]
    assert not list((tmp_path / "marks").glob("*.tmp"))


@pytest.mark.dist
def test_one_that_fails_in_another_process_says_so_here(tmp_path: Path, workers: Workers) -> None:
    with pytest.raises(UserError, match="task 3 is bad"):
        run(Marking(failing=3), tmp_path, workers, quiet)


@pytest.mark.dist
def test_a_process_that_is_killed_is_told_and_the_rest_is_kept(tmp_path: Path, workers: Workers) -> None:
    with pytest.raises(Interrupted, match=r"marking was killed \(tasks in hand: .*marks/4.*data.workers=1"):
        run(Marking(killed=4), tmp_path, workers, quiet)
    done = [number for number in range(6) if is_done(tmp_path / "marks", number)]
    assert 4 not in done
    run(Marking(), tmp_path, workers, quiet)
    assert [logged(tmp_path).count(number) for number in done] == [1] * len(done)
    assert all(is_done(tmp_path / "marks", number) for number in range(6))


def test_a_task_in_other_hands_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    with locked(folder / "00000.lock"):
        assert not attempt(Marking(), folder, 0)
    assert attempt(Marking(), folder, 0)


def _run(folder: Path) -> None:
    run(Marking(seconds=0.1), folder, Workers(1), quiet)


@pytest.mark.dist
def test_processes_that_know_nothing_of_each_other_share_them(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_run, args=(tmp_path,)) for _ in range(2)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    assert logged(tmp_path) == list(range(6))
    by = {(tmp_path / "marks" / f"{number:05d}" / "about.json").read_text() for number in range(6)}
    assert len(by) >= 2


def _with_workers(folder: Path) -> None:
    tasks.ALONE = 0
    workers = Workers(2)
    run(Marking(count=2), folder, workers, quiet)
    run(Marking(name="slow", count=2, seconds=300.0), folder, workers, quiet)


@pytest.mark.dist
def test_a_killed_parent_leaves_no_process_behind(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_with_workers, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("slow/*.tmp/half"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = children(process.pid)
    assert len(below) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in below):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int | None) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
