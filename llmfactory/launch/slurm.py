"""A batch script for Slurm in the run folder; each machine runs torch's launcher, which starts from the saved config.

The machines meet at the first of them, on a port that is free there when the job begins.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmfactory.core.errors import UserError
from llmfactory.launch.agent import LOGS
from llmfactory.launch.failure import forget, outcome
from llmfactory.launch.spec import Slurm, Submit
from llmfactory.launch.torchrun import SAVING_S, line, may_use_gpus, python_of

SCRIPT = "job.sh"
FREE_PORT = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"


def run_slurm(spec: Slurm, config: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """See `LaunchSpec.run`."""
    (folder / LOGS).mkdir(exist_ok=True)
    path = folder / SCRIPT
    path.write_text(script(spec, config, folder), encoding="utf-8")
    path.chmod(0o755)
    print(f"script: {path}", flush=True)
    if spec.submit is Submit.none:
        print(f"submit it with: sbatch {shlex.quote(str(path))}")
        return None
    forget(folder / LOGS)
    if spec.submit is Submit.submitit:
        from llmfactory.launch.requeue import submit

        return submit(spec, folder, folder / LOGS, gpus_of(spec, config))
    if shutil.which("sbatch") is None:
        raise UserError(
            f"launch.submit=sbatch, but this machine has no sbatch: submit {path} where Slurm is, or launch.submit=none"
        )
    command = ["sbatch", "--parsable", *["--wait"] * spec.wait, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sbatch:
        assert sbatch.stdout is not None
        assert sbatch.stderr is not None
        job = sbatch.stdout.readline().strip().split(";")[0]  # "number;cluster", as soon as it is queued
        if job:
            print(f"job {job} is queued; it prints into {folder / LOGS / f'slurm_{job}.txt'}", flush=True)
        complaint = sbatch.stderr.read().strip()
    if not job:
        raise UserError(f"Slurm did not take {path}: {complaint or f'sbatch ended with {sbatch.returncode}'}")
    return outcome(folder, folder / LOGS, sbatch.returncode, f"Slurm's job {job}") if spec.wait else None


def gpus_of(spec: Slurm, config: dict[str, Any]) -> int:
    """GPUs to ask for on each machine."""
    if spec.gpus is not None:
        return spec.gpus
    return spec.processes if may_use_gpus(config) else 0


def options(spec: Slurm, config: dict[str, Any], folder: Path) -> Iterator[str]:
    """Of sbatch, one a line."""
    yield f"--job-name={shlex.quote(folder.name)}"
    yield f"--nodes={spec.nodes}"
    yield "--ntasks-per-node=1"
    if gpus := gpus_of(spec, config):
        yield f"--gpus-per-node={gpus}"
    given = {
        "cpus-per-task": spec.cpus,
        "time": spec.time,
        "partition": spec.partition,
        "account": spec.account,
        "qos": spec.qos,
    }
    yield from (f"--{name}={shlex.quote(str(value))}" for name, value in given.items() if value is not None)
    yield f"--chdir={shlex.quote(os.getcwd())}"
    yield f"--output={shlex.quote(str(folder.resolve() / LOGS / 'slurm_%j.txt'))}"
    yield f"--signal=TERM@{SAVING_S}"
    yield from spec.lines


def script(spec: Slurm, config: dict[str, Any], folder: Path) -> str:
    """The whole text."""
    python = python_of(spec.python)
    srun = shlex.join(["srun", *spec.srun])
    start = line(spec, "$head:$port", folder, name="$SLURM_JOB_ID", python=python)
    words = " ".join(f'"{word}"' if "$" in word else shlex.quote(word) for word in start)
    threads = [f"export OMP_NUM_THREADS={max(1, spec.cpus // spec.processes)}"] if spec.cpus is not None else []
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options(spec, config, folder)),
            "",
            "set -e -o pipefail",
            *spec.setup,
            *threads,
            'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f'port=$({srun} --nodes=1 --ntasks=1 --nodelist="$head" {shlex.quote(python)} -c "{FREE_PORT}")',
            f"{srun} --kill-on-bad-exit=1 {words}",
            "",
        ]
    )
