"""Run by an interpreter of its own, as a script that imports nothing of this project: programs that nobody trusts, one after the other.

The first line of standard input is a request, {"programs": [...], "folder": ..., "cpu_s": ..., "wall_s": ..., "memory_bytes": ...,
"processes": ..., "file_bytes": ..., "number": ...}; standard output is a list that says of each program whether it ran to its end. A program runs in a
process that was forked for it. That it ran to its end is told by a secret which is drawn for it and written by this file's own code
behind the program's last line; so a program that leaves early, whatever it prints and with whatever exit code, has not passed. When
standard input ends, whoever asked is gone, and everything is killed.

What confines a program, as far as the kernel offers it to this user:
- limits of CPU time, memory, file size, open files and processes (setrlimit);
- a network of its own with nothing in it, and process numbers of its own, so that it sees and signals no other process, and all that it
  has started ends with it (unshare);
- writing below its own folder only (Landlock), and, where root asks, a user of its own;
- no new privileges by any file that it may execute.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import secrets
import select
import signal
import stat
import sys
import time

NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x08000000, 0x10000000, 0x20000000, 0x40000000
SET_NO_NEW_PRIVS, SET_SUBREAPER = 38, 36
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PATH_BENEATH = 1
WRITES = 0x1FF2
"""Landlock's rights of version 1 that change anything: write, remove, make."""
ALL_WRITES = {1: WRITES, 2: WRITES | 0x2000}
"""By version: 2 also moves between folders, 3 also truncates."""
FIRST_USER, USERS = 20_000, 40_000
"""Numbers that belong to nobody, and that containers know."""
SET_KEEP_CAPABILITIES, CAPABILITIES_3, MAY_READ = 8, 0x20080522, 1 << 2
OPEN_FILES = 64


def main() -> None:
    request = json.loads(sys.stdin.readline())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(SET_SUBREAPER, 1, 0, 0, 0)
    passed = []
    until = time.monotonic() + request["wall_s"]
    for program in request["programs"]:
        passed.append(time.monotonic() < until and ran(libc, program, request, until))
    print(json.dumps(passed), flush=True)


def ran(libc: ctypes.CDLL, program: str, request: dict, until: float) -> bool:  # type: ignore[type-arg]
    """Whether the program came to its end before the time is up."""
    secret = secrets.token_bytes(16)
    mine, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(mine)
        apart(libc, program, request, secret, its)
    os.close(its)
    said = waited(mine, until)
    os.close(mine)
    end_all(child)
    return said == secret


def waited(pipe: int, until: float) -> bytes:
    """What is written to the pipe until it closes, enough is there, or the time is up."""
    said = b""
    while (left := until - time.monotonic()) > 0 and len(said) < 16:
        ready, _, _ = select.select([pipe, 0], [], [], left)
        if 0 in ready and not os.read(0, 1):
            break
        if pipe in ready:
            part = os.read(pipe, 16 - len(said))
            if not part:
                break
            said += part
    return said


def end_all(child: int) -> None:
    """Kill the child and all that it has left behind, which this process inherits."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    left = [child]
    while left:
        for one in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0)[0]:
                left = children()
                for one in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)
        left = children()


def children() -> list[int]:
    """Processes whose parent this one is."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def apart(libc: ctypes.CDLL, program: str, request: dict, secret: bytes, pipe: int) -> None:  # type: ignore[type-arg]
    """Between this process and the program: process numbers of its own begin with a child. Never returns."""
    try:
        os.setpgid(0, 0)
        is_root = os.geteuid() == 0
        libc.unshare(NEW_NET | NEW_IPC | (0 if is_root else NEW_USER))
        numbered = libc.unshare(NEW_PID) == 0
        child = os.fork() if numbered else 0
        if child:
            os.close(pipe)
            os.waitpid(child, 0)
        else:
            confine(libc, request, is_root)
            run(program, secret, pipe)
    finally:
        os._exit(0)


def confine(libc: ctypes.CDLL, request: dict, is_root: bool) -> None:  # type: ignore[type-arg]
    """Limits, which last."""
    os.chdir(request["folder"])
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    write_below(libc, request["folder"])
    limits = {
        resource.RLIMIT_CPU: max(1, round(request["cpu_s"])),
        resource.RLIMIT_AS: request["memory_bytes"],
        resource.RLIMIT_FSIZE: request["file_bytes"],
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_NPROC: request["processes"],
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    if is_root:
        become(libc, FIRST_USER + request["number"] % USERS, request["folder"])


def become(libc: ctypes.CDLL, user: int, folder: str) -> None:
    """A user of its own: no limit of processes holds for root. It may read what root may where it could not import a module else."""
    os.chown(folder, user, user)
    keep = not readable(os.__file__)
    libc.prctl(SET_KEEP_CAPABILITIES, int(keep), 0, 0, 0)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    if keep:
        header = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0)
        libc.capset(header, (ctypes.c_uint32 * 6)(MAY_READ, MAY_READ, 0, 0, 0, 0))


def readable(path: str) -> bool:
    """Whether any user may read the interpreter's own modules."""
    while (above := os.path.dirname(path)) != path:
        path = above
        if not os.stat(path).st_mode & stat.S_IXOTH:
            return False
    return True


def write_below(libc: ctypes.CDLL, folder: str) -> None:
    """No file elsewhere can be changed (Landlock); nothing, where the kernel does not know it."""
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return
    rights = ALL_WRITES.get(version, WRITES | 0x6000)

    class Ruleset(ctypes.Structure):
        _fields_ = [("handled", ctypes.c_uint64)]

    class Beneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]

    rules = libc.syscall(CREATE_RULESET, ctypes.byref(Ruleset(rights)), 8, 0)
    for path, allowed in ((folder, rights), (os.devnull, rights & 0x4002)):
        parent = os.open(path, os.O_PATH)
        libc.syscall(ADD_RULE, rules, PATH_BENEATH, ctypes.byref(Beneath(allowed, parent)), 0)
        os.close(parent)
    libc.syscall(RESTRICT_SELF, rules, 0)
    os.close(rules)


def run(program: str, secret: bytes, pipe: int) -> None:
    """The secret is written when the program is through; what it changed in `os` by then does not matter."""
    write, leave = os.write, os._exit
    try:
        exec(compile(program, "<answer>", "exec"), {"__name__": "__main__"})
        write(pipe, secret)
    finally:
        leave(0)


if __name__ == "__main__":
    main()
