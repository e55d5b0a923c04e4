"""Side-by-side measurement on a noisy machine: one process a sample, variants in turn, medians and ratios with their spread.

Each sample is a fresh process (so that allocators, thread pools and caches of one side never help the other) that prints one
number on its last line. Variants take turns within a round, and the ratio to the reference is taken within each round, so
that a slow minute hits both sides alike.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

ALONE = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
"""Environment of a sample."""


def sample(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run one measurement in a process of its own; the last word that it prints is the number."""
    done = subprocess.run([sys.executable, *command], env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def sample_words(command: Sequence[str], count: int, environment: Mapping[str, str] | None = None) -> list[float]:
    """The same of the last `count` words, under one thread."""
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **ALONE, **(environment or {})}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return [float(word) for word in done.stdout.split()[-count:]]


def interleave(
    variants: Mapping[str, Sequence[str]],
    reference: str,
    rounds: int,
    unit: str,
    environment: Mapping[str, str] | None = None,
) -> dict[str, list[float]]:
    """Measure all variants `rounds` times in turn and print a Markdown table of medians and of ratios to the reference.

    A ratio above 1 means that the variant's number is smaller (faster) than the reference's.
    """
    environment = {**ALONE, **(environment or {})}
    numbers: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        order = list(variants) if turn % 2 == 0 else list(reversed(variants))
        for name in order:
            numbers[name].append(sample(variants[name], environment))
        print(f"round {turn + 1}/{rounds}: " + ", ".join(f"{name} {numbers[name][-1]:.4g}" for name in variants), file=sys.stderr)
    print(f"| variant | median {unit} | spread | {reference} / variant: median | spread |\n|---|---|---|---|---|")
    for name, values in numbers.items():
        ratios = [base / value for base, value in zip(numbers[reference], values, strict=True)]
        print(
            f"| {name} | {statistics.median(values):.4g} | {min(values):.4g}-{max(values):.4g} "
            f"| {statistics.median(ratios):.3f} | {min(ratios):.3f}-{max(ratios):.3f} |"
        )
    print(f"\n{rounds} rounds, {machine()}")
    return numbers


def machine() -> str:
    """Processor, cores, versions."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
