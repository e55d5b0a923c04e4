"""Machines of a Ray cluster: one task on each runs torch's launcher, which starts from the saved config.

Ray finds the machines and keeps what the job asked for; processes, restarts and failures are torch's business, as elsewhere.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llmfactory.core.errors import MissingExtra, UserError
from llmfactory.core.parent import terminate_with_parent
from llmfactory.launch.agent import LOGS, child_environment
from llmfactory.launch.failure import forget, outcome
from llmfactory.launch.spec import Ray
from llmfactory.launch.torchrun import SAVING_S, line, may_use_gpus

END_S = 30.0
"""Seconds that the other machines have to end by themselves after one failed."""


def run_ray(spec: Ray, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """See `LaunchSpec.run`."""
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise MissingExtra("ray", "ray", "launch=ray") from None
    forget(folder / LOGS)
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=spec.address, include_dashboard=False if spec.address == "local" else None)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            hint = "start one with `ray start --head`, or launch.address=local"
            raise UserError(f"no Ray cluster answers at launch.address={spec.address}: {reason} ({hint})") from error
    try:
        return _run(ray, spec, config, folder)
    finally:
        if ours:
            ray.shutdown()


def _run(ray: Any, spec: Ray, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    scheduling = importlib.import_module("ray.util.scheduling_strategies")
    gpus = spec.gpus if spec.gpus is not None else spec.processes if may_use_gpus(config) else 0
    cpus = spec.cpus if spec.cpus is not None else spec.processes
    machine = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
    places = ray.util.placement_group([machine] * spec.nodes, strategy="STRICT_SPREAD" if spec.nodes > 1 else "PACK")
    try:
        if not places.wait(spec.join_timeout_s):
            has = {name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            raise UserError(
                f"the Ray cluster has had no room for {spec.nodes} machine{'s' * (spec.nodes > 1)} with {machine} each "
                f"within {spec.join_timeout_s:g} s (launch.join_timeout_s); it has {len(ray.nodes())} with {has} together"
            )

        def at(number: int) -> dict[str, Any]:
            where = scheduling.PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=number)
            return {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": where, "max_retries": 0}

        endpoint = ray.get(ray.remote(free_endpoint).options(**at(0)).remote(spec.nodes == 1))
        words = line(spec, endpoint, folder, name=f"{folder.name}-{time.time_ns()}")
        remote = ray.remote(run_line)
        threads = max(1, cpus // spec.processes)
        tasks = [remote.options(**at(number)).remote(words, os.getcwd(), threads) for number in range(spec.nodes)]
        return outcome(folder, folder / LOGS, _wait(ray, tasks), "Ray's job")
    finally:
        ray.util.remove_placement_group(places)


def _wait(ray: Any, tasks: list[Any]) -> int:
    """Until all have ended; the exit code of the first that failed. Ctrl-C and SIGTERM let the processes save and end."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    left, code = list(tasks), 0
    try:
        while left:
            done, left = ray.wait(left, num_returns=1, timeout=END_S if code else None)
            if not done:
                for task in left:
                    ray.cancel(task, force=True)
                break
            code = code or _code_of(ray, done[0])
    except KeyboardInterrupt:
        for task in left:
            ray.cancel(task, force=False)
        ray.wait(left, num_returns=len(left), timeout=SAVING_S)
    finally:
        signal.signal(signal.SIGTERM, before)
    return code


def _code_of(ray: Any, task: Any) -> int:
    try:
        return int(ray.get(task))
    except ray.exceptions.RayError as error:  # the machine is gone, or Ray's process on it
        print(f"Ray: {error}", file=sys.stderr)
        return 1


def free_endpoint(alone: bool) -> str:
    """`host:port` of the machine that this runs on."""
    ray = importlib.import_module("ray")
    host = "127.0.0.1" if alone else ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind(("", 0))
        return f"{host}:{free.getsockname()[1]}"


def run_line(words: list[str], directory: str, threads: int) -> int:
    """A machine's task: torch's launcher, to its end; its exit code. Cancelled, it lets the processes save."""
    with child_environment(threads):
        process = subprocess.Popen(words, cwd=directory, preexec_fn=terminate_with_parent)
    try:
        while process.poll() is None:
            time.sleep(0.2)
    except BaseException:
        process.terminate()
        process.wait(SAVING_S)
        raise
    return int(process.returncode)
