"""Workers for the tests of launch=local: they run in processes of their own, which find them by import."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from llmfactory.core.errors import ConfigError, Problem, UserError


def rank() -> int:
    return int(os.environ["RANK"])


def report(config: dict[str, Any]) -> dict[str, Any]:
    """What the process was started with; each rank leaves a mark, so that none can have run twice."""
    Path(config["folder"], f"rank_{rank()}_{os.getpid()}").touch()
    names = ("WORLD_SIZE", "OMP_NUM_THREADS", "SLURM_PROCID", "MASTER_ADDR")
    return {"rank": rank(), "config": config, **{name: os.environ.get(name) for name in names}}


def fail(config: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 fails at once in the way asked for; rank 0 waits as if it were in a collective, then fails of its own."""
    Path(config["folder"], f"pid_{os.getpid()}").touch()
    if rank() == 0:
        time.sleep(config.get("patience", 60))
        raise RuntimeError("lost the connection")
    while len(list(Path(config["folder"]).glob("pid_*"))) < 2:  # else the agent may end rank 0 before it began
        time.sleep(0.01)
    if config["how"] == "config":
        raise ConfigError([Problem("optim.lr", -1.0, "must be positive", "optim.lr=0.1")])
    if config["how"] == "user":
        raise UserError("the disk is full")
    if config["how"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ZeroDivisionError("an accident")


def fail_once(config: dict[str, Any]) -> dict[str, Any]:
    """Works from the second attempt on."""
    mark = Path(config["folder"], f"tried_{rank()}")
    if not mark.exists():
        mark.touch()
        raise UserError("not at the first attempt")
    return {"attempt": int(os.environ["TORCHELASTIC_RESTART_COUNT"])}


def until_told(config: dict[str, Any]) -> dict[str, Any]:
    """Works until SIGTERM comes, then saves and returns, like a training job."""
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    Path(config["folder"], f"ready_{rank()}").write_text(str(os.getpid()))
    for _ in range(1200):
        if told:
            Path(config["folder"], f"saved_{rank()}").touch()
            return {"stopped": "terminated"}
        time.sleep(0.05)
    return {"stopped": "never"}


def deaf(config: dict[str, Any]) -> dict[str, Any]:
    """Has no handler yet when SIGTERM comes."""
    Path(config["folder"], f"ready_{rank()}").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


def wait_for_each_other(config: dict[str, Any]) -> dict[str, Any]:
    """Rank 0 waits in an operation, in the way asked for, for a rank 1 that does something else."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    Path(config["folder"], f"pid_{os.getpid()}").touch()
    dist.barrier()
    numbers = torch.ones(3)
    if rank() == 0:
        if config["how"] == "collective":
            dist.all_reduce(numbers)
        else:
            dist.recv(numbers, 1)
    return busy_elsewhere()


def busy_elsewhere() -> dict[str, Any]:
    time.sleep(60)
    return {}


def die(config: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 dies without a word, at the very start, while rank 0 waits for it to join."""
    import torch.distributed as dist

    Path(config["folder"], f"pid_{os.getpid()}").touch()
    if rank() == 1:
        while len(list(Path(config["folder"]).glob("pid_*"))) < 2:
            time.sleep(0.01)
        os._exit(3)
    dist.init_process_group("gloo")
    return {}


def speak(config: dict[str, Any]) -> dict[str, Any]:
    """Through Python and past it; then fails on the last rank if asked to."""
    import subprocess

    print(f"python of rank {rank()}")
    subprocess.run(["echo", f"library of rank {rank()}"], check=True)
    Path(config["folder"], f"spoke_{rank()}").touch()
    while not Path(config["folder"], "spoke_0").exists():
        time.sleep(0.01)
    if config.get("fail") and rank() == int(os.environ["WORLD_SIZE"]) - 1:
        raise UserError("the disk is full")
    if config.get("fail"):
        time.sleep(60)
    result = {"rank": rank(), "node": int(os.environ["GROUP_RANK"]), "world": int(os.environ["WORLD_SIZE"])}
    if rank() == 0:
        Path(config["folder"], "result.json").write_text(json.dumps(result))
    return result


def work_and_be_killed_once(config: dict[str, Any]) -> dict[str, Any]:
    """The real job, of which rank 1 is killed as soon as there is a checkpoint, at the first attempt."""
    import threading

    from llmfactory.run.worker import work

    checkpoint = Path(config["output_dir"], config["name"], "checkpoints", "step_00000002", "state.json")

    def kill() -> None:
        while not checkpoint.exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    if rank() == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        threading.Thread(target=kill, daemon=True).start()
    return work(config)
