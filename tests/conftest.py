"""Shared by all tests: one CPU thread, no network, a cache of their own, goldens, no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

# Before torch is imported: thread pools are sized once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false", MPLBACKEND="agg")

# Before Triton is imported: without a GPU its kernels run in its interpreter.
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json with what the tree gives now")
    parser.addoption("--shard", default="1/1", help="with -m matrix: which part of the cross of layouts to prove, as 3/20")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Prepared data of the tests goes to a folder of their own, shared by the session."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


def _children() -> dict[int, str]:
    """Living child processes of this one, by Linux's own account."""
    found = {}
    for task in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, task.read_text().split()):
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if state != "Z" and "resource_tracker" not in command and "forkserver" not in command:
                found[pid] = command
    return found


@pytest.fixture(scope="session", autouse=True)
def _no_process_left():
    """The suite fails if anything that it started still runs at its end."""
    yield
    if "pool" in sys.modules:
        sys.modules["pool"].close()  # of the distributed tests
    multiprocessing.active_children()  # reaps the finished ones
    if sys.platform == "linux":
        assert not _children(), f"processes left behind: {_children()}"


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the source tree."""
    return ROOT
