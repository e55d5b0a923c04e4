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
LONG = (
    *("distributed/test_proofs", "run/test_life_lines", "distributed/test_precisions", "distributed/test_context_parallel"),
    *("run/test_interrupted", "test_configs", "launch/test_local", "distributed/test_pipeline", "distributed/test_kill"),
    *("run/test_start", "test_style", "config/test_compose", "run/test_sweep", "distributed/test_expert_parallel"),
    *(
        "distributed/test_checkpoints",
        "data/source/test_pydoc_items",
        "distributed/test_optimizers",
        "distributed/test_layout_keys",
    ),
    *("distributed/test_methods", "distributed/test_kernels", "distributed/test_rollouts", "run/test_line", "test_dead_keys"),
)
"""Files that take longest, in that order: they run first, so that none of them begins when all others are done."""
DRAWN = ("test_report", "test_sweep", "test_profiling")
"""Files of tests/run that look at plots."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.json with what the tree gives now")
    parser.addoption("--shard", default="1/1", help="with -m matrix: which part of the cross of layouts to prove, as 3/20")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {ROOT / "tests" / f"{name}.py": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONG)))


@pytest.fixture(scope="module", autouse=True)
def _reports_without_drawings(request: pytest.FixtureRequest):
    """Drawing the plots of a report takes longer than training a toy: where a run is started for something else, it is left out."""
    if request.path.parent.name not in ("run", "stage") or request.path.stem in DRAWN:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmfactory.run.report.curves", lambda title, *_, **__: f"<svg>{title}</svg>")
        yield


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
