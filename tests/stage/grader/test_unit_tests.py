"""Programs that nobody trusts. What each does is bounded by itself, too, so that a sandbox that does not hold does no harm."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llmfactory.stage.grader import sandbox
from llmfactory.stage.grader.confined import CREATE_RULESET
from llmfactory.stage.grader.grader import Answer, NoGrade, graded
from llmfactory.stage.grader.sandbox import CONFINED, Limits, SandboxBroken, run
from llmfactory.stage.grader.spec import UnitTests
from llmfactory.stage.grader.unit_tests import UnitTestsGrader, program_in

Said = Callable[..., Answer]
LIMITS = Limits(cpu_s=2, wall_s=20, memory_bytes=256 << 20, processes=8, file_bytes=1 << 20)
SHORT = Limits(cpu_s=60, wall_s=2, memory_bytes=256 << 20, processes=8, file_bytes=1 << 20)


def test_what_passes_runs_to_its_end() -> None:
    programs = {
        "x = 1\nassert x == 1": True,
        "assert False": False,
        "def f(:": False,
        "raise SystemExit(0)": False,
        "import os; os._exit(0)": False,
        "import os; print('[true]'); os.write(1, b'[true]'); os._exit(0)": False,
        "import os\nfor pipe in range(3, 60):\n  try: os.write(pipe, b'x' * 16)\n  except OSError: pass": False,
        "import json, math, re, collections, itertools, typing, heapq": True,
        "if __name__ == '__main__': raise ValueError": False,
        "import os; os.write = os._exit = print": True,
    }
    assert run(list(programs), LIMITS) == list(programs.values())


def test_limits_hold(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    programs = {
        "x = bytearray(10**9)": False,
        "x = []\nfor _ in range(1000): x.append(bytearray(10**6))": False,
        "open('a', 'w').write('x' * 1000)": True,
        "open('a', 'w').write('x' * 10**7)": False,
        f"open({str(tmp_path / 'new')!r}, 'w').write('x')": False,
        f"import os; os.unlink({str(mine)!r})": False,
        f"open({str(mine)!r}, 'a').write('x')": False,
        "import socket; socket.create_connection(('127.0.0.1', 9), timeout=0.2)": False,
        "import socket; s = socket.socket(); s.settimeout(0.2); s.connect(('10.255.255.1', 80))": False,
        "files = [open('/dev/null') for _ in range(100)]": False,
        "assert not input()": False,
        "import os; assert os.environ['HOME'] == os.getcwd() and 'PYTHONPATH' not in os.environ": True,
    }
    assert run(list(programs), LIMITS) == list(programs.values())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert mine.read_text() == "kept"


@pytest.mark.skipif(
    ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1) < 1, reason="this kernel has no Landlock"
)
def test_folders_that_anybody_may_write_to_are_out_of_reach() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        programs = [
            f"import os; os.mkdir({folder + '/a'!r})",
            f"open({folder + '/b'!r}, 'w')",
            "open(os.devnull, 'w').write('x')",
        ]
        assert run([f"import os\n{program}" for program in programs], LIMITS) == [False, False, True]
        assert not list(Path(folder).iterdir())


def test_forks_are_few_and_end_with_the_program() -> None:
    forks = (
        "import os, time\nmade = 0\n"
        "try:\n  for _ in range(30):\n    if os.fork() == 0: time.sleep(5); os._exit(0)\n    made += 1\n"
        "except OSError: pass\nassert made < 12"
    )
    threads = "import threading, time\nfor _ in range(30): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()"
    bomb = "import os\nfor _ in range(6):\n  try: os.fork()\n  except OSError: pass\nwhile True: pass"
    escaped = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(30)\n  os._exit(0)"
    assert run([forks, threads, escaped], LIMITS) == [True, False, True]
    assert run([bomb], SHORT) == [False]
    assert not descendants()


def descendants() -> list[str]:
    """Processes that run our sandbox."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                line = (path / "cmdline").read_bytes()
                parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if CONFINED.name.encode() in line and parent in ("1", str(os.getpid())):
                found.append(path.name)
    return found


def test_other_processes_are_out_of_reach() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        programs = [f"import os; os.kill({other.pid}, 9)", "import os\ntry: os.kill(-1, 15)\nexcept OSError: pass"]
        assert run(programs, LIMITS)[0] is False
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(30)"])
def test_it_ends_when_the_time_is_up(program: str) -> None:
    assert run(["assert True", program, "assert True"], SHORT) == [True, False, False]


def test_it_ends_when_its_cpu_time_is_up() -> None:
    limits = Limits(cpu_s=1, wall_s=120, memory_bytes=256 << 20, processes=8, file_bytes=1 << 20)
    assert run(["while True: pass", "assert True"], limits) == [False, True]


def test_it_ends_when_nobody_waits_any_more(tmp_path: Path) -> None:
    """The process that asked is gone: standard input ends."""
    process = subprocess.Popen([sys.executable, "-I", "-S", str(CONFINED)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    request = {"programs": ["import time; time.sleep(60)"], "folder": str(tmp_path), "number": 7, "cpu_s": 1, "wall_s": 60}
    request |= {"memory_bytes": 1 << 28, "processes": 8, "file_bytes": 1 << 20}
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    assert process.stdout is not None
    assert json.loads(process.stdout.read()) == [False]
    process.stdout.close()


def test_the_share_of_tests(said: Said) -> None:
    answer = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."
    tests = ["assert add(1, 2) == 3", "assert add(1, 2) == 4", "assert add('a', 'b') == 'ab'", "assert two == 2"]
    grader = UnitTestsGrader(UnitTests(workers=2))
    assert grader.grade(
        [said(answer, tests=tests, setup="two = 2"), said("nothing", tests=tests), said("", tests="assert True")]
    ) == [
        0.75,
        0.0,
        1.0,
    ]
    assert graded(grader, [said(answer, tests=[])], 1.0) == [NoGrade("the record holds no test")]


@pytest.mark.parametrize(
    "text", ["x + 1", "x + 1\n\ndef other(): pass", "x\n```python\ndef inc(x):\n    return x + 1\n```\nthere"]
)
def test_it_goes_on_with_what_was_begun_or_writes_it_anew(said: Said, text: str) -> None:
    begin = 'def inc(x):\n    """One more."""\n' + ("    return " if text.startswith("x + 1") else "")
    assert UnitTestsGrader(UnitTests()).grade([said(text, begin=begin, tests=["assert inc(1) == 2"])]) == [1.0]


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("a\n```python\nx = 1\n```\nb\n```py\ny = 2\n```\nc", "y = 2\n"),
        ("a\n```Python\nx = 1", "x = 1"),
        (" ```python\nx = 1\n ```", "x = 1\n"),
    ],
)
def test_the_program_of_an_answer(text: str, program: str) -> None:
    assert program_in(text) == program


def test_options_reach_the_sandbox(said: Said) -> None:
    record = {"checks": ["x = bytearray(100 << 20)", "open('a', 'w').write('x' * (3 << 20))", "import os; os.fork()"]}
    wide = UnitTests(tests="checks", memory_mb=512, file_mb=8, processes=16, cpu_seconds=3.0, seconds=9.0)
    narrow = UnitTests(tests="checks", memory_mb=64, file_mb=1, processes=1)
    assert UnitTestsGrader(wide).grade([said("", **record)]) == [1.0]
    assert UnitTestsGrader(narrow).grade([said("", **record)]) == [0.0]
    assert UnitTestsGrader(wide).limits == Limits(3.0, 9.0, 512 << 20, 16, 8 << 20)
    assert wide.needs() == ("checks",)


def test_a_sandbox_that_cannot_begin_gives_no_grade(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CONFINED", Path("/nowhere/confined.py"))
    with pytest.raises(SandboxBroken, match="nowhere"):
        run(["assert True"], LIMITS)
    assert UnitTestsGrader(UnitTests()).grade([said("", tests=["assert True"])]) == [NoGrade("the sandbox failed: SandboxBroken")]
