"""A line: its steps run in order in the parent, each as the command of its own that it could be.

What a step leaves lies in `<output_dir>/steps/<stage>-<key>` (run/line_plan.py): a run folder like any other, and in it
`ancestry.json`, which says where everything in it came from. A finished step is not run again, an interrupted one goes on.
"""

from __future__ import annotations

import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from llmfactory.config.compose import Composed
from llmfactory.config.saved import CONFIG
from llmfactory.core.errors import ConfigError, UserError
from llmfactory.run.folder import (
    LOG,
    OVERRIDES,
    Lock,
    locked,
    read_config,
    read_result,
    settle_name,
    write_config,
    write_result,
)
from llmfactory.run.line_plan import Step, plan
from llmfactory.run.line_report import measured, show_line, write_line_report
from llmfactory.run.log import logged_to
from llmfactory.run.plain_file import write_json

ANCESTRY = "ancestry.json"


def run_line(line: Composed) -> dict[str, Any]:
    """All steps of all seeds, and what they came to. Raises ConfigError before the first starts; UserError names the step."""
    planned = plan(line)
    config = dict(line.plain)
    folder = settle_name(config, {"model": "line", "data": ""})
    with locked(folder) as lock:
        insist_on_a_line(folder)
        with logged_to(folder / LOG):
            write_config(folder, config, line.overrides)
            lock.share()
            print(f"line folder: {folder}", *_overview(planned), sep="\n", flush=True)
            return _run(folder, config, planned, lock)


def _run(folder: Path, config: dict[str, Any], planned: list[list[Step]], lock: Lock) -> dict[str, Any]:
    began = time.perf_counter()
    done: list[dict[str, Any]] = []
    result: dict[str, Any] = {"name": config["name"], "stage": config["stage"]["type"]}
    try:
        for steps in planned:
            made: dict[str, Step] = {}
            for step in steps:
                done.append(run_step(step, made))
                made[step.name] = step
    except BaseException as error:
        write_result(folder, {**result, "status": "failed", "error": str(error) or type(error).__name__, "steps": done})
        raise
    result |= {"status": "finished", "steps": done, **measured(planned)}
    result |= {"seconds": time.perf_counter() - began, "ended": datetime.now().isoformat(" ", "seconds")}
    write_result(folder, result)
    write_line_report(folder, planned)
    show_line(result)
    print(f"report: {folder / 'report.html'}", flush=True)
    return result


def insist_on_a_line(folder: Path) -> None:
    """Nothing but a line's own files may lie there. Raises UserError."""
    if (folder / CONFIG).exists():
        if (found := read_config(folder).get("stage", {}).get("type")) == "line":
            return
        raise UserError(f"{folder} holds a run of stage={found}: give the line another name=")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in {LOG, OVERRIDES, ".lock", "result.json"})
    if foreign:
        raise UserError(f"{folder} is there already and holds {', '.join(foreign[:5])}: give the line another name=")


def _overview(planned: list[list[Step]]) -> list[str]:
    return [
        f"  {step.name}{f' (seed {step.seed})' if len(planned) > 1 else ''}: {step.folder}{', there already' if finished(step) else ''}"
        for steps in planned
        for step in steps
    ]


def finished(step: Step) -> bool:
    """Whether its outcome is there."""
    from llmfactory.run.start import is_finished

    before = read_result(step.folder) if step.folder.is_dir() else None
    return before is not None and is_finished(before, step.composed.plain) and (step.folder / ANCESTRY).is_file()


def run_step(step: Step, made: dict[str, Step]) -> dict[str, Any]:
    """Its figures, after it has run where it had not. `made`: the steps before it."""
    from llmfactory.run.start import start

    again = not finished(step)
    if again:
        print(f"\nstep {step.name}: {shlex.join(step.composed.overrides)}", flush=True)
        try:
            found = start(step.composed)
        except ConfigError:
            raise
        except UserError as error:
            raise UserError(f"step {step.name}: {error}") from error
        if found.get("status") == "terminated":
            raise KeyboardInterrupt(f"stopped in step {step.name}; the same command goes on from here")
        write_json(step.folder / ANCESTRY, ancestry(step, made))
    result = read_result(step.folder) or {}
    kept = {key: value for key, value in result.items() if isinstance(value, (int, float, str, bool)) and key != "name"}
    return {"step": step.name, "seed": step.seed, "key": step.key, "folder": str(step.folder), "ran": again, "figures": kept}


def ancestry(step: Step, made: dict[str, Step]) -> dict[str, Any]:
    """Where an outcome comes from, as a tree."""
    return {
        "key": step.key,
        "step": step.name,
        "stage": step.composed.plain["stage"]["type"],
        "seed": step.seed,
        "overrides": step.composed.overrides,
        "data": step.data,
        "ancestors": [ancestry(made[name], made) for name in step.ancestors],
    }
