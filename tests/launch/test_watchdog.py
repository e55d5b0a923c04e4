"""The thread that ends a process when another one has failed, or when all wait."""

from __future__ import annotations

import subprocess
import threading
import time

import pytest
import torch.distributed as dist

from llmfactory.core.errors import UserError
from llmfactory.launch import watchdog
from llmfactory.launch.failure import of_error
from llmfactory.launch.watchdog import Peers, Watchdog, next_on_machine


@pytest.fixture
def ended(monkeypatch):
    """Exit codes with which the watchdog would have ended this process."""
    codes: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", codes.append)
    monkeypatch.setattr(watchdog, "GRACE_S", 0.2)
    monkeypatch.setattr(watchdog, "ANSWER_S", 0.5)
    return codes


class Shared(dist.HashStore):
    """A store within this process, for threads that stand for processes."""

    def clone(self):
        return self


def failure(message: str, rank: int):
    try:
        raise UserError(message)
    except UserError as error:
        return of_error(error, rank, None)


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_another_s_failure_ends_this_process_with_that_error(ended):
    store, kept = Shared(), []
    dog = Watchdog(Peers(store, 0, 2), 2.0, kept.append)
    dog.start()
    Peers(store, 1, 2).tell(failure("the disk is full", 1))
    Peers(store, 1, 2).tell(failure("a later one", 1))
    wait_until(lambda: ended)
    dog.join()
    assert ended == [1]
    assert [(one.rank, one.message) for one in kept] == [(1, "the disk is full")]


def test_a_process_that_ends_by_itself_is_let_go(ended):
    store = Shared()
    dog = Watchdog(Peers(store, 0, 2), 2.0, lambda one: None)
    dog.start()
    store.set("ended/1", "")
    dog.stop(well=True)
    Peers(store, 1, 2).tell(failure("late", 1))
    dog.join()
    assert not dog.is_alive()
    assert ended == []
    assert store.check(["ended/0"])


def test_rank_0_stays_until_the_others_are_done(ended):
    store, done = Shared(), []
    dog = Watchdog(Peers(store, 0, 3), 20.0, lambda one: None)
    dog.start()
    thread = threading.Thread(target=lambda: done.append(dog.stop(well=True)))
    thread.start()
    store.set("ended/1", "")
    time.sleep(0.2)
    assert not done
    store.set("ended/2", "")
    thread.join()
    assert ended == []


def test_a_process_that_says_nothing_is_missed(ended, monkeypatch):
    store, kept = Shared(), []
    monkeypatch.setattr(Watchdog, "is_stuck", lambda self: True)
    dog = Watchdog(Peers(store, 1, 3), 2.0, kept.append)
    store.set("standing/0", '{"rank": 0, "waits": null, "place": "read.py:3 (read)"}')
    dog.start()
    wait_until(lambda: ended)
    dog.join()
    lines = kept[0].message.splitlines()
    assert lines[0] == "processes wait for each other since 1.6 s (parallel.timeout_s=2):"
    assert lines[1] == "  rank 0 does not wait for anybody: it is in read.py:3 (read)"
    assert lines[2].startswith("  rank 1 ")
    assert lines[3] == "  rank 2 gave no sign of life"
    assert store.check(["failure"])


def test_a_neighbour_that_was_killed_is_missed(ended, monkeypatch):
    child = subprocess.Popen(["true"])
    child.wait()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    store, kept = Shared(), []
    store.set("process/1", str(child.pid))
    dog = Watchdog(Peers(store, 0, 2), 2.0, kept.append)
    dog.start()
    wait_until(lambda: ended)
    dog.join()
    assert kept[0].message == "the process of rank 1 ended without a word (killed? out of memory?)"
    assert kept[0].follows


def test_the_store_is_gone(ended):
    class Gone(Shared):
        def check(self, keys):
            raise dist.DistNetworkError("Broken pipe")

    kept = []
    dog = Watchdog(Peers(Gone(), 0, 2), 2.0, kept.append)
    dog.start()
    wait_until(lambda: ended)
    dog.join()
    assert "the process of rank 0, where all others met, is gone" in kept[0].message


def test_who_works_is_not_stuck_and_who_waits_is(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(watchdog, "recorded", list)
    seconds, call = [0.0], ["all_reduce"]
    monkeypatch.setattr(watchdog, "main_seconds", lambda: seconds[0])
    monkeypatch.setattr(watchdog, "waiting_call", lambda frames: call[0])
    monkeypatch.setattr(watchdog, "main_frames", list)

    def looks(work: float) -> list[bool]:
        dog, found = Watchdog(Peers(None, 0, 2), 100.0, lambda one: None), []
        for _ in range(9):
            clock[0] += 10
            seconds[0] += work
            found.append(dog.is_stuck())
        return found

    assert looks(0.0) == [False] * 7 + [True] * 2  # 80 s of 100
    assert looks(1.0) == [False] * 9
    call[0] = None
    assert looks(0.0) == [False] * 9


def test_a_pending_collective_is_enough(monkeypatch):
    """On GPUs the main thread turns in circles while the collective hangs."""
    seconds = [0.0]

    def busy():
        seconds[0] += 1
        return seconds[0]

    monkeypatch.setattr(watchdog, "main_seconds", busy)
    for age_s, stuck in ((90, True), (50, False)):
        entry = {"retired": False, "state": "started", "time_created_ns": (time.time() - age_s) * 1e9}
        monkeypatch.setattr(watchdog, "recorded", lambda entry=entry: [entry])
        dog = Watchdog(Peers(None, 0, 2), 100.0, lambda one: None)
        dog._looked -= 50
        assert dog.is_stuck() == stuck


def test_neighbours_make_a_ring_on_each_machine(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for local, after in ((0, 5), (2, 7), (3, 4)):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        assert next_on_machine(4 + local) == after


def test_the_default_patience_leaves_room_before_the_backends_give_up():
    dog = Watchdog(Peers(None, 0, 2), 600.0, lambda one: None)
    assert dog.patience_s == 570
    assert dog.patience_s + watchdog.LOOK_S + dog.period_s < 600
    assert isinstance(dog, threading.Thread)
    assert dog.daemon
