"""Several machines at hand: torch's launcher line for each of them, and this machine's share if asked for.

The line starts `python -m llmfactory.run.worker <run>/config.yaml` in every process, so that no machine composes anything.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from llmfactory.launch.agent import LOGS, LOOPBACK, OWN_STORE, Share, run_share
from llmfactory.launch.failure import forget
from llmfactory.launch.spec import MachinesSpec, Torchrun, Worker

SAVING_S = 120
"""Seconds that processes have to save and end after torch's launcher was told to stop."""


def run_torchrun(spec: Torchrun, worker: Worker, config: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """See `LaunchSpec.run`."""
    forget(folder / LOGS)
    place, here = shlex.quote(os.getcwd()), spec.node_rank or 0
    numbers = [None] if spec.node_rank is None else list(range(spec.nodes))
    others = [number for number in numbers if number != here] if spec.start else numbers
    if not spec.start:
        each = f"each of the {spec.nodes} machines" if spec.nodes > 1 else "the machine"
        print(f"on {each if spec.node_rank is None else 'the machines, in this order'} run:")
    elif spec.nodes > 1:
        print("this is one of the machines; on each of the others run:")
    for number in others if spec.node_rank is not None or not spec.start else numbers * (spec.nodes > 1):
        check = shlex.join([sys.executable, "-m", "llmfactory.launch.port", spec.endpoint])
        print(f"  cd {place} && {check} && {shlex.join(line(spec, spec.endpoint, folder, node_rank=number))}")
    sys.stdout.flush()
    if not spec.start:
        return None
    share = Share(
        processes=spec.processes,
        nodes=spec.nodes,
        endpoint=spec.endpoint,
        node_rank=spec.node_rank,
        name=folder.name,
        max_restarts=spec.max_restarts,
        join_timeout_s=spec.join_timeout_s,
    )
    return run_share(share, worker, config, folder, None)


def line(
    spec: MachinesSpec,
    endpoint: str,
    folder: Path,
    *,
    name: str | None = None,
    node_rank: int | None = None,
    python: str | None = None,
) -> list[str]:
    """The words of torch's launcher line for one machine.

    Args:
        name: what tells this job from others that meet at the same endpoint; None: the folder's.
        python: of the environment on that machine; None: the running one.
    """
    script = Path(sys.executable).with_name("torchrun")
    launcher = [str(script)] if python is None and script.exists() else [python_of(python), "-m", "torch.distributed.run"]
    host, _, port = endpoint.rpartition(":")
    if node_rank is None:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-conf=join_timeout={int(spec.join_timeout_s)}"]
    else:
        meeting = [f"--node-rank={node_rank}", f"--master-addr={host}", f"--master-port={port}"]
        meeting.append(f"--rdzv-conf=timeout={int(spec.join_timeout_s)}")
    if host in LOOPBACK:
        meeting.append("--local-addr=127.0.0.1")
    return [
        "env",
        f"{OWN_STORE}=1",
        *launcher,
        f"--nnodes={spec.nodes}",
        f"--nproc-per-node={spec.processes}",
        *meeting,
        f"--rdzv-id={name or folder.name}",
        f"--max-restarts={spec.max_restarts}",
        f"--shutdown-timeout={SAVING_S}",
        "-m",
        "llmfactory.run.worker",
        str(folder.resolve() / "config.yaml"),
    ]


def python_of(given: str | None) -> str:
    """The interpreter of the job's environment."""
    return given or sys.executable


def may_use_gpus(config: dict[str, Any]) -> bool:
    """Whether the job may compute on GPUs, of which machines are asked for one a process: preparing data does not."""
    preparing = config["stage"].get("type") == "prepare"
    return not preparing and bool(config["trainer"]["device"] != "cpu")
