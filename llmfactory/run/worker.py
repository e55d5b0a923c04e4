"""What runs in every process of a job: a plain dict in, a plain dict out. No Hydra, no command line.

Rank 0 keeps the run folder's files up to date; the other ranks print nothing but errors.

`python -m llmfactory.run.worker <run>/config.yaml`, under torch's launcher, is one process of the job that the file describes:
so a job starts on machines that never saw its command.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from llmfactory.config.plain import from_plain
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.core.kernel import Kernel
from llmfactory.core.parent import terminate_with_parent
from llmfactory.kernel.choice import insist_on
from llmfactory.launch.agent import LOGS
from llmfactory.launch.failure import lost_connection
from llmfactory.launch.rank import rank_of_job
from llmfactory.parallel.mesh import device_type
from llmfactory.run.determinism import settings
from llmfactory.run.folder import LOG, in_use, run_folder, write_result
from llmfactory.run.log import logged_to
from llmfactory.run.plain_file import read_yaml
from llmfactory.stage.spec import Prepare, Profile, TrainingSpec


def work(config: dict[str, Any]) -> dict[str, Any]:
    """Run this process's part of the job that the plain config describes; rank 0's return value is the job's."""
    began = time.perf_counter()
    job, folder = from_plain(config), run_folder(config)
    rank = int(os.environ.get("RANK", "0"))
    insist_on_a_device_each(job)
    for chosen in (job.trainer.kernel, getattr(job.optim, "kernel", Kernel.torch)):
        insist_on(chosen, device_type(job.trainer.device))
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(in_use(folder))
            stack.enter_context(logged_to(folder / LOG if rank == 0 else None))
        stack.enter_context(settings(job.trainer, device_type(job.trainer.device)))
        if isinstance(job.stage, TrainingSpec):
            assert folder is not None
            from llmfactory.run.train import train

            result = train(job, config, folder)
        elif isinstance(job.stage, Profile):
            assert folder is not None
            from llmfactory.run.profiling import profile_training

            result = profile_training(job, config, folder)
        elif isinstance(job.stage, Prepare):
            assert folder is not None
            from llmfactory.run.preparing import prepare_data

            result = prepare_data(job, folder)
        else:
            result = job.stage.build().run(job, folder)
        result = {
            "name": config["name"],
            "stage": config["stage"]["type"],
            "status": "finished",
            **result,
            "seconds": time.perf_counter() - began,
            "ended": datetime.now().isoformat(" ", "seconds"),
        }
        if folder is not None and rank == 0:
            from llmfactory.run.report import write_report

            write_result(folder, result)
            write_report(folder)
    return result


def insist_on_a_device_each(job: Job) -> None:
    """Processes that shared a GPU would fail one by one, or run out of its memory. Raises UserError."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = torch.cuda.device_count() if device_type(job.trainer.device) == "cuda" else processes
    if processes > gpus:
        raise UserError(
            f"{processes} processes were started on this machine, which has {gpus} GPU{'s' if gpus > 1 else ''}: "
            f"launch.processes={gpus}, or trainer.device=cpu"
        )


def run_saved(path: Path) -> None:
    """One process of the job of a saved config."""
    path = path.resolve()
    folder, config = path.parent, read_yaml(path)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    with rank_of_job(config, folder / LOGS, folder / LOGS):
        job, named = from_plain(config), run_folder(config)
        if job.launch.world() != started:
            raise UserError(f"{path} is made for {job.launch.world()} processes, but {started} were started")
        if named is None or named.resolve() != folder:
            there = "no folder" if named is None else named.resolve()
            raise UserError(f"{path} describes the run in {there}: start it in the directory where its command was given")
        work(config)


def main(arguments: list[str]) -> int:
    """The exit code."""
    path = Path(arguments[0]) if len(arguments) == 1 else None
    if path is None or "RANK" not in os.environ:
        print("this is started by torch's launcher: torchrun ... -m llmfactory.run.worker <run>/config.yaml", file=sys.stderr)
        return 2
    terminate_with_parent()
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # by which Lightning would take its place from Slurm's one task on this machine
    try:
        run_saved(path)
    except BaseException as error:
        from llmfactory.run.start import record_failure

        if not lost_connection(error):  # else the process that began it has told
            record_failure(path.resolve().parent, error)
        if not isinstance(error, (ConfigError, UserError, KeyboardInterrupt)):
            raise
        print(error, file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
