"""On what a run happened: versions, processor, threads, and the state of the user's own project."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import llmfactory

BITS = ("threads", "cpu_capability", "torch", "processes")
"""What the last bit of a sum depends on."""


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Plain data, to be kept in result.json and shown in the report."""
    return {
        "llmfactory": llmfactory.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": _version("lightning"),
        "os": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "git": _git_commit(),
    }


def changed_bits(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """One line if a resumed run cannot be bit-equal to an unbroken one because the machine is another; None: it can."""
    changed = [f"{name} {before[name]} -> {now[name]}" for name in BITS if name in before and before[name] != now[name]]
    if not changed:
        return None
    return f"resuming on another machine or set-up ({', '.join(changed)}): results agree up to rounding, not bit for bit"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Commit of the repository that the command was run in, with `+changes` if files differ from it; None: no repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
