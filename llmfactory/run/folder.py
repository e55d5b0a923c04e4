"""The run folder: everything one run leaves behind, at one place, used by one command at a time.

| file | content |
|---|---|
| `config.yaml` | the resolved config as plain data; any worker can be started from it |
| `overrides.txt` | the overrides of the last command, one a line |
| `metrics.csv` | a row a logged step (tracking=csv) |
| `result.json` | status and final figures, also of a failed run |
| `report.html` | the same for the eye, one self-contained file |
| `checkpoints/` | training states (checkpoint/io.py) |
| `tokenizer/` | the tokenizer that the model reads with |
| `log.txt` | everything that was printed, of all attempts |
| `.lock` | held while a process of the run lives; an exclusive lock while the folder is judged, a shared one while it is used |
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmfactory.checkpoint.files import STATE
from llmfactory.config.saved import CONFIG
from llmfactory.core.errors import ConfigError, Problem, UserError
from llmfactory.run.names import make_name
from llmfactory.run.plain_file import read_json, read_yaml, write_json, write_whole, write_yaml
from llmfactory.run.resume import compare

OVERRIDES = "overrides.txt"
RESULT = "result.json"
LOG = "log.txt"
LOCK = ".lock"
HARMLESS = {LOCK, LOG, RESULT, OVERRIDES}
"""Files that a folder may hold without being a run folder yet: a run died before it wrote its config."""


def run_folder(config: dict[str, Any]) -> Path | None:
    """The folder of a config whose name is settled; None: the job has no name, so it leaves nothing behind."""
    return Path(config["output_dir"], config["name"]).expanduser() if config["name"] else None


def settle_name(config: dict[str, Any], choices: Mapping[str, str]) -> Path:
    """Give the config a name if it has none, and make the folder. Two runs started in one instant get two folders."""
    parent = Path(config["output_dir"]).expanduser()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if config["name"] is None:
            config["name"] = _free_name(parent, choices)
        folder = Path(parent, config["name"])
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the run folder below {parent} cannot be made: {error.strerror or error}") from error
    return folder


def _free_name(parent: Path, choices: Mapping[str, str]) -> str:
    while True:
        name = make_name(choices)
        try:
            (parent / name).mkdir()  # exclusive: whoever makes the folder owns the name
        except FileExistsError:
            continue
        return name


def claim(folder: Path, config: dict[str, Any]) -> list[str]:
    """Check that this config may run in this folder; lines to tell the user. Raises ConfigError or UserError, changing nothing.

    Call it with the lock of `locked` held.
    """
    resume = config["resume"]
    if not (folder / CONFIG).exists():
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in HARMLESS)
        if foreign:
            shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise UserError(f"{folder} is there already and is no run folder (it holds {shown}): give another name=")
        return []
    if resume == "never":
        reason = f"{folder} holds a run already, and resume=never forbids going on"
        raise ConfigError([Problem("name", config["name"], f"{reason}: give another name", "resume=auto")])
    if not has_begun(folder):
        return []
    before = read_yaml(folder / CONFIG)
    kinds = [one.get("stage", {}).get("type") for one in (before, config)]
    if kinds[0] != kinds[1]:
        reason = f"{folder} holds a run of stage={kinds[0]}, and another stage would take its place"
        raise ConfigError([Problem("name", config["name"], f"{reason}: give another name", "name=null")])
    return [] if resume == "changed" else compare(before, config)


def has_begun(folder: Path) -> bool:
    """Whether there is something to go on with, or results: a run that failed before may be begun anew in any way."""
    if any(folder.glob(f"checkpoints/step_*/{STATE}")):
        return True
    return (read_result(folder) or {}).get("status") == "finished"


def write_config(folder: Path, config: dict[str, Any], overrides: list[str]) -> None:
    write_yaml(folder / CONFIG, config)
    write_overrides(folder, overrides)


def write_overrides(folder: Path, overrides: list[str]) -> None:
    write_whole(folder / OVERRIDES, "".join(f"{override}\n" for override in overrides))


def read_overrides(folder: Path) -> list[str]:
    return (folder / OVERRIDES).read_text(encoding="utf-8").splitlines() if (folder / OVERRIDES).exists() else []


def read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} is no run folder: it has no {CONFIG}")
    return read_yaml(folder / CONFIG)


def read_result(folder: Path) -> dict[str, Any] | None:
    """What the last attempt left; None: nothing yet."""
    return read_json(folder / RESULT) if (folder / RESULT).exists() else None


def write_result(folder: Path, result: dict[str, Any]) -> None:
    write_json(folder / RESULT, result)


@contextmanager
def locked(folder: Path) -> Iterator[Lock]:
    """The exclusive right to judge and change the folder. Raises UserError if a process of a run there still lives."""
    lock = Lock(folder)
    try:
        lock.take(fcntl.LOCK_EX)
        yield lock
    finally:
        lock.release()


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """A share of the lock, held by each worker: it outlives a parent that was killed while its workers still write."""
    lock = Lock(folder)
    try:
        lock.take(fcntl.LOCK_SH)
        yield
    finally:
        lock.release()


class Lock:
    """`flock` on a file of the folder; the system drops it when the process dies, however it dies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{folder} cannot be written to: {error.strerror or error}") from error

    def take(self, kind: int) -> None:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.folder} is in use by another process: wait for it, or give another name=") from error

    def share(self) -> None:
        """Keep the folder, and let this run's own workers take their shares."""
        self.take(fcntl.LOCK_SH)

    def release(self) -> None:
        os.close(self._file)
