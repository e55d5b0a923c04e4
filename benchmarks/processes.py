"""Runs a function in several processes that find each other as those of a job do, and reads what each leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMIT = 600.0
"""Seconds."""


def start(function: Callable[..., None], world: int, arguments: Sequence[Any]) -> list[Any]:
    """`function(*arguments, folder)` in `world` processes on the CPU, each with one thread; it leaves `<rank>.json` in the folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "lightning.pytorch", "llmfactory.run.fit"])
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [
            context.Process(target=_one, args=(rank, world, port, function, [*arguments, Path(folder)])) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT)
            if process.is_alive():
                process.kill()
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


def _one(rank: int, world: int, port: int, function: Callable[..., None], arguments: list[Any]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    import torch

    torch.set_num_threads(1)
    function(*arguments)
    os._exit(0)  # threads of the communication library may wait for a peer that has left
