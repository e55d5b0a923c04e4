"""Runs functions of a test file in N gloo processes, which stay for the tests that follow.

The processes are forked by one clean server process (Python's forkserver) that imported torch, lightning and this project
once, so that starting them costs tenths of a second and they inherit no thread of pytest. Still the first training in a process
costs a second more than those after it (torch works out how each operation on a distributed tensor is cut, once for each shape of
mesh). So a `Crew` keeps its processes and their process group, and `run` keeps a crew for each number of processes.

What a function changes in its process, the next one would find: changes to this project's modules are looked for after each
function, and are an error. A function that must change something, or die, runs `alone`, in new processes. Each run has a deadline;
whatever happens, no process outlives its crew, and a crew that failed is none any more: the next run gets a new one.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "lightning.pytorch", "llmfactory.run.fit", "llmfactory.config.compose", "pytest"])
LIMIT_S = 400.0
"""For a run that hangs: a loaded machine may take minutes for what takes seconds alone."""
MOST = 12
"""Processes that are kept at once."""
WATCHED = ("os", "shutil", "torch.nn.functional")
"""Modules besides the project's own in which tests exchange functions."""


class Died(AssertionError):
    """A process ended without a result."""


def run(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = LIMIT_S, alone: bool = False) -> list[Any]:
    """`function(*arguments)` in every process; its results in order of rank. The process group is there when it starts.
    `alone`: in new processes, which end with it."""
    if not alone:
        task = function.__code__.co_filename, function.__name__, pickle.dumps(arguments)
        return _crew(world).run(unchanging, *task, timeout=timeout)
    crew = Crew(world)
    try:
        return crew.run(function, *arguments, timeout=timeout)
    finally:
        crew.close()


def close() -> None:
    """End the processes that are kept."""
    while _kept:
        _kept.popitem()[1].close()


_kept: dict[int, Crew] = {}
"""By number of processes; the one used last stands last."""


def _crew(world: int) -> Crew:
    crew = _kept.pop(world, None) or Crew(world)
    if not crew.alive():  # a test has ended all processes that it found
        crew.close()
    while _kept and sum(_kept) + world > MOST:
        _kept.pop(next(iter(_kept))).close()
    _kept[world] = crew
    return crew


class Crew:
    """`world` processes that stay, in one process group; started when they are needed. `package`: a folder to import the project
    from, which the server must not have imported; None: as everybody does."""

    def __init__(self, world: int, package: Path | None = None) -> None:
        self.world, self.package = world, package
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = LIMIT_S) -> list[Any]:
        """As `run` above, in the processes of the run before."""
        deadline = time.monotonic() + timeout
        try:
            if not self._processes:
                self._start()
            task = pickle.dumps((function.__code__.co_filename, function.__name__, pickle.dumps(arguments)))
            for pipe in self._pipes:
                pipe.send_bytes(task)
            return self._collect(deadline, timeout)
        except BaseException:
            self.close()
            raise

    def alive(self) -> bool:
        """Whether its processes, if it has any yet, are there."""
        return all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        """End the processes: in peace if they wait for work, else by force."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(0.5)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self.world):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(rank, self.world, self._folder.name, theirs, self.package))
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _collect(self, deadline: float, timeout: float) -> list[Any]:
        results: dict[int, Any] = {}
        while len(results) < self.world:
            missing = [rank for rank in range(self.world) if rank not in results]
            ready = wait([self._pipes[rank] for rank in missing], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"ranks {missing} of {self.world} did not finish within {timeout} s")
            for rank in missing:
                if self._pipes[rank] in ready:
                    good, results[rank] = _receive(self._pipes[rank], rank)
                    if not good:
                        raise AssertionError(f"rank {rank} of {self.world}:\n{results[rank]}")
        return [results[rank] for rank in range(self.world)]


def _receive(pipe: Connection, rank: int) -> tuple[bool, Any]:
    try:
        good, result = pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionResetError):
        raise Died(f"rank {rank} died without a word") from None
    return good, result


# ---- in the processes


def _serve(rank: int, world: int, folder: str, pipe: Connection, package: Path | None) -> None:
    """One process of a crew: function after function, until one fails or the other end of the pipe is closed."""
    good = True
    if package is not None:
        sys.path.insert(0, str(package))
    try:
        while good:
            path, name, arguments = pickle.loads(pipe.recv_bytes())
            try:
                _join(rank, world, folder)
                result: Any = getattr(_module(path), name)(*pickle.loads(arguments))
                import torch.distributed as dist

                dist.barrier()  # nobody leaves while another still talks to it
            except BaseException:
                good, result = False, traceback.format_exc()
            pipe.send_bytes(pickle.dumps((good, result)))
    except (EOFError, OSError):
        pass  # nobody wants anything any more
    os._exit(0)  # gloo's threads may wait for a dead peer for ever


def unchanging(path: str, name: str, arguments: bytes) -> Any:
    """What the function `name` of a test file gives; the environment and torch's settings are put back, and changes to modules are
    an error."""
    function, environment, settings, before = getattr(_module(path), name), dict(os.environ), _settings(), _names()
    result = function(*pickle.loads(arguments))
    os.environ.clear()
    os.environ.update(environment)
    for put_back, value in settings:
        put_back(value)
    # torch wraps the step of an optimizer's class when the first is made, for its profiler.
    now = {key: value for key, value in _names().items() if not getattr(value, "hooked", False)}
    changed = [key for key, value in now.items() if key in before and before[key] is not value]
    assert not changed, f"{name} leaves other processes than it found, so it must run alone: {', '.join(changed)}"
    return result


def _settings() -> list[tuple[Callable[[Any], None], Any]]:
    """What holds for a whole process in torch: how to set it, and what it is."""
    import torch

    return [
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]


def _names() -> dict[str, Any]:
    """What modules and their classes name."""
    found = {}
    for module in [name for name in sys.modules if name.partition(".")[0] == "llmfactory" or name in WATCHED]:
        for key, value in vars(sys.modules[module]).items():
            found[f"{module}.{key}"] = value
            if isinstance(value, type) and value.__module__ == module:
                found |= {f"{module}.{key}.{name}": inner for name, inner in vars(value).items()}
    return found


def _join(rank: int, world: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({key: str(value) for key, value in here.items()})
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    _share_a_device()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    _keep_groups()


def _share_a_device() -> None:
    """One for all groups of a process: each would have its own, whose thread wakes up a hundred times a second for as long as the
    group stays, and a hundred groups that nobody uses take an eighth of a core."""
    from torch.distributed import distributed_c10d

    gloo = distributed_c10d.ProcessGroupGloo
    device = gloo.create_default_device()

    class OneDevice(gloo):  # type: ignore[misc, valid-type]
        def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
            options = gloo._Options()
            options._devices, options._timeout = [device], timeout
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = OneDevice


def _keep_groups() -> None:
    """The groups of a layout are made once: their sockets and threads would stay for as long as the process."""
    from llmfactory.parallel import mesh

    arrange, known = mesh._arrange, {}

    def arranged(device_type: str, degrees: dict[str, int], form: Any) -> dict[str, Any]:
        key = (device_type, *degrees.items(), form)
        if key not in known:
            known[key] = arrange(device_type, degrees, form)
        return known[key]

    mesh._arrange = arranged


def _module(path: str) -> ModuleType:
    """The test file, loaded once; its folder and that of all tests can be imported from."""
    name = Path(path).stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return loaded
    for folder in (str(Path(path).parents[1]), str(Path(path).parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
