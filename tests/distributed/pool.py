"""Runs a function of a test file in N gloo processes.

The processes are forked by one clean server process (Python's forkserver) that imported torch, lightning and this project
once, so a run costs tenths of a second and inherits no thread of pytest. Each run has a deadline; whatever happens, no
process outlives it.
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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "lightning.pytorch", "llmfactory.run.fit"])


class Died(AssertionError):
    """A process ended without a result."""


def run(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 60.0) -> list[Any]:
    """`function(*arguments)` in every process; its results in order of rank. The process group is there when it starts."""
    deadline = time.monotonic() + timeout
    path = function.__code__.co_filename
    with tempfile.TemporaryDirectory() as folder:
        pipes = [CONTEXT.Pipe(duplex=False) for _ in range(world)]
        processes = [
            CONTEXT.Process(
                target=_work, args=(path, function.__name__, rank, world, folder, pickle.dumps(arguments), pipes[rank][1])
            )
            for rank in range(world)
        ]
        try:
            for process, (_, sender) in zip(processes, pipes, strict=True):
                process.start()
                sender.close()
            results: dict[int, Any] = {}
            while len(results) < world:
                for rank, (receiver, _) in enumerate(pipes):
                    if rank not in results and receiver.poll(0.01):
                        good, results[rank] = _receive(receiver, rank)
                        if not good:
                            raise AssertionError(f"rank {rank} of {world}:\n{results[rank]}")
                if time.monotonic() > deadline:
                    missing = [rank for rank in range(world) if rank not in results]
                    raise AssertionError(f"ranks {missing} of {world} did not finish within {timeout} s")
            return [results[rank] for rank in range(world)]
        finally:
            for process, (receiver, _) in zip(processes, pipes, strict=True):
                receiver.close()
                if process.pid is None:
                    continue
                process.join(0.5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _receive(receiver: Connection, rank: int) -> tuple[bool, Any]:
    try:
        good, result = pickle.loads(receiver.recv_bytes())
    except EOFError:
        raise Died(f"rank {rank} died without a word") from None
    return good, result


def _work(path: str, name: str, rank: int, world: int, folder: str, arguments: bytes, sender: Connection) -> None:
    try:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ.update({key: str(value) for key, value in here.items()})
        warnings.simplefilter("error")
        sys.path[:0] = [str(Path(path).parent), str(Path(path).parents[1])]
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        result = True, getattr(module, name)(*pickle.loads(arguments))
        dist.barrier()  # nobody leaves while another still talks to it
    except BaseException:
        result = False, traceback.format_exc()
    sender.send_bytes(pickle.dumps(result))
    sender.close()
    os._exit(0)  # gloo's threads may wait for a dead peer for ever
