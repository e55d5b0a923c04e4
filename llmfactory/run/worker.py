"""What runs in every process of a job: a plain dict in, a plain dict out. No Hydra, no command line.

Rank 0 keeps the run folder's files up to date; the other ranks print nothing but errors.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from datetime import datetime
from typing import Any

from llmfactory.config.plain import from_plain
from llmfactory.parallel.mesh import device_type
from llmfactory.run.determinism import settings
from llmfactory.run.folder import LOG, in_use, run_folder, write_result
from llmfactory.run.log import logged_to
from llmfactory.stage.spec import TrainingSpec


def work(config: dict[str, Any]) -> dict[str, Any]:
    """Run this process's part of the job that the plain config describes; rank 0's return value is the job's."""
    began = time.perf_counter()
    job, folder = from_plain(config), run_folder(config)
    rank = int(os.environ.get("RANK", "0"))
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(in_use(folder))
            stack.enter_context(logged_to(folder / LOG))
        stack.enter_context(settings(job.trainer, device_type(job.trainer.device)))
        if isinstance(job.stage, TrainingSpec):
            assert folder is not None
            from llmfactory.run.train import train

            result = train(job, config, folder)
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
