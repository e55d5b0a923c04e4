"""One job from its composed config to its final table: the run folder, the launch, the record of a failure.

This is the parent's side. The workers (run/worker.py) get plain data and the folder's name in it, nothing else.
"""

from __future__ import annotations

import copy
import sys
import traceback
from pathlib import Path
from typing import Any

from llmfactory.config.compose import Composed
from llmfactory.config.plain import to_plain
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.launch.spec import Single
from llmfactory.run.figures import figures
from llmfactory.run.folder import (
    LOG,
    claim,
    has_begun,
    locked,
    read_config,
    read_overrides,
    read_result,
    settle_name,
    write_config,
    write_result,
)
from llmfactory.run.log import log_only, logged_to
from llmfactory.run.plain_file import write_whole
from llmfactory.run.worker import work
from llmfactory.stage.choice import resolved
from llmfactory.stage.generate import printable
from llmfactory.stage.plan import DRAWING, draw_layout
from llmfactory.stage.spec import Line, Plan, TrainingSpec

FINISHED = ("finished", "early")
"""Values of `status` after which there is nothing to go on with, unless a later end is asked for."""


def start(composed: Composed) -> dict[str, Any]:
    """Run the job and return its results, or `status: prepared` if it is for others to run.

    Raises ConfigError, UserError, or whatever the first failing process raised.

    Stages that keep something always have a run folder (`StageSpec.keeps`), and what is started from a saved config. Other jobs
    have one if they are given a name; else they only print.
    """
    if isinstance(composed.job.stage, Line):
        from llmfactory.run.line import run_line

        return run_line(composed)
    job, remarks = resolved(composed.job)
    config = copy.deepcopy(composed.plain)
    if job is not composed.job:  # parallel=auto: what is recorded and started is the layout that was found
        plain = to_plain(job)
        config["parallel"] = plain["parallel"]
        config["trainer"]["micro_batch_size"] = plain["trainer"]["micro_batch_size"]
    launch = Single() if isinstance(job.stage, Plan) else job.launch  # a plan starts nothing
    if config["name"] is None and not job.stage.keeps and not launch.from_folder:
        result = launch.run(work, config)
        assert result is not None
        show(result)
        return result
    folder = settle_name(config, composed.choices)
    with locked(folder) as lock:
        lines = claim(folder, config)
        before = read_result(folder)
        if before is not None and is_finished(before, config):
            longer = "a larger trainer.max_steps" if isinstance(composed.job.stage, TrainingSpec) else "resume=changed"
            print(f"{folder} is finished already; {longer} or another name= would go on")
            show(before)
            return before
        old, reached = read_config(folder) if has_begun(folder) else None, saved(folder)
        typed = read_overrides(folder)
        with logged_to(folder / LOG):
            write_config(folder, config, composed.overrides)
            lock.share()
            print(f"run folder: {folder}", *lines, *remarks, sep="\n", flush=True)
            if isinstance(job.stage, TrainingSpec) and (drawing := draw_layout(job)) is not None:
                write_whole(folder / DRAWING, drawing)
            try:
                result = launch.run(work, config, folder)
            except BaseException as error:
                record_failure(folder, error)
                if old is not None and saved(folder) == reached:  # nothing was done under the new config
                    write_config(folder, old, typed)
                raise
            if result is None:
                return {"status": "prepared", "name": config["name"]}
            show(result)
            print(f"report: {folder / 'report.html'}", flush=True)
            return result


def saved(folder: Path) -> list[str]:
    """Names of the checkpoints of a run."""
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*"))


def is_finished(result: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether the same command would find nothing left to do."""
    if result.get("status") not in FINISHED or result.get("stage") != config["stage"]["type"]:
        return False
    if "max_steps" not in result:  # not training: done is done
        return True
    if result["status"] == "early":
        return bool(result["max_steps"] == config["trainer"]["max_steps"] and result["patience"] == config["trainer"]["patience"])
    return bool(result["step"] >= config["trainer"]["max_steps"])


def record_failure(folder: Path, error: BaseException) -> None:
    """Keep the figures of an earlier attempt out: they are not those of a failed one."""
    known = isinstance(error, (ConfigError, UserError))
    text = str(error) if known else "".join(traceback.format_exception(error))
    if isinstance(error, KeyboardInterrupt):
        text = str(error) or "interrupted"
    log_only(text)
    before = read_result(folder) or {}
    kept: dict[str, Any] = {key: before[key] for key in ("stage", "environment", "data") if key in before}
    try:
        write_result(folder, {**kept, "name": folder.name, "status": "failed", "error": text})
    except UserError as full:  # the disk; the error that counts is on its way
        print(full, file=sys.stderr)


def show(result: dict[str, Any]) -> None:
    """The final table, and the sample."""
    from rich.console import Console
    from rich.table import Table

    rows = figures(result)
    if not rows:
        return
    if result.get("status") == "terminated":
        print(f"stopped by a signal; the same command goes on from here (with name={result['name']})")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, figure, remark in rows:
        table.add_row(what, f"[bold]{figure}[/]", remark)
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    console.print(table)
    if result.get("sample"):
        console.print("\n[bold]sample[/]", end="\n")
        print(printable(result["sample"]["prompt"] + result["sample"]["text"]), flush=True)
