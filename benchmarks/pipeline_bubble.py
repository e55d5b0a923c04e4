"""Idle share of each pipeline schedule, measured, beside its formula.

    python benchmarks/pipeline_bubble.py                       4 processes, 8 micro-batches
    python benchmarks/pipeline_bubble.py --micro-batches 16 --unit 0.2

A real job on real processes and messages, with a tiny model whose stages sleep until each piece of work has lasted: a forward, the
gradient of inputs and that of weights each take `unit` seconds for all layers of a process (an unsplit backward pass twice
that) from when they have what they need, so that two cores can stand for four devices. The idle share is that of the process
that spans the longest time from its first work to the end of its last (Qi et al. 2023, section 5), in the second step.

With p processes, n micro-batches, v stages a process and a backward pass of twice the forward's time:

| schedule | idle share |
|---|---|
| gpipe, one_f_one_b | (p - 1) / (n + p - 1)                     (Huang et al. 2019; Narayanan et al. 2021) |
| interleaved | (p - 1) / (v n + p - 1)                          (Narayanan et al. 2021b, section 2.2) |
| zero_bubble | (p - 1) / (3 v n + p - 1)                        (Qi et al. 2023, ZB-H1: (p - 1) (F + I - W) / v) |
| zero_bubble_v | 0                                              (Qi et al. 2023, ZB-V) |
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.processes import start

PRESETS = ("pp_gpipe", "pp_1f1b", "pp_interleaved", "pp_zero_bubble", "pp_zero_bubble_v")


def formula(schedule: str, p: int, n: int, v: int) -> float:
    return {
        "gpipe": (p - 1) / (n + p - 1),
        "one_f_one_b": (p - 1) / (n + p - 1),
        "interleaved": (p - 1) / (v * n + p - 1),
        "zero_bubble": (p - 1) / (3 * v * n + p - 1),
        "zero_bubble_v": 0.0,
    }[schedule]


def line_of(preset: str, p: int, n: int) -> list[str]:
    return [
        "model=llama_tiny",
        "model.n_layers=8",
        "model.dim=16",
        "model.vocab_size=300",
        "model.ffn.hidden=16",
        "model.attention.n_heads=2",
        "data/tokenizer=bytes",
        "data.seq_len=16",
        "optim/schedule=constant",
        f"parallel={preset}",
        f"parallel.pp={p}",
        "launch=local",
        f"launch.processes={p}",
        f"trainer.batch_size={n}",
        "trainer.micro_batch_size=1",
        "trainer.max_steps=2",
        "trainer.eval_every=null",
        "trainer.save_every=null",
        "trainer.keep_best=false",
        "trainer.sample=false",
        "trainer.progress=false",
        "trainer.device=cpu",
        "tracking=none",
    ]


def sleeping(line: list[str], unit: float, folder: Path) -> None:
    """One process: leaves [begin, end] of each piece of work of its second step."""
    from llmfactory.config.compose import compose_job
    from llmfactory.data.prepare import prepare
    from llmfactory.parallel import pipeline
    from llmfactory.run.display import Silent
    from llmfactory.run.fit import fit
    from llmfactory.tracking.none import NoTracker

    job = compose_job(line).job
    times: list[tuple[float, float]] = []

    ready = 0.0

    def when_ready(wait: Any) -> Any:
        """Note when what a piece of work waits for is there."""

        def noted(*arguments: Any) -> Any:
            nonlocal ready
            found = wait(*arguments)
            ready = time.monotonic()
            return found

        return noted

    def lasting(work: Any, seconds: float) -> Any:
        """From when it has what it needs, the work takes so long, its own computing included."""

        def slow(*arguments: Any) -> None:
            nonlocal ready
            ready = time.monotonic()
            work(*arguments)
            begin = ready
            time.sleep(max(0.0, begin + seconds - time.monotonic()))
            times.append((begin, time.monotonic()))

        return slow

    run, share = pipeline._Run, unit / job.parallel.stages_per_process  # type: ignore[attr-defined]
    for name in ("inputs", "ends"):
        setattr(run, f"_{name}", when_ready(getattr(run, f"_{name}")))
    for name in ("forward", "backward_of_inputs", "backward_of_weights"):
        setattr(run, f"_{name}", lasting(getattr(run, f"_{name}"), share))
    backward = run._backward

    def unsplit(self: Any, stage: int, micro: int) -> None:
        put_off = (
            self.going[stage, micro].later is not None
        )  # by the first stage: then it is the part of the weights, which sleeps
        (backward if put_off else lasting(backward, 2 * share))(self, stage, micro)

    run._backward = unsplit  # type: ignore[method-assign]
    step = pipeline.Pipeline.step

    def anew(self: Any, *arguments: Any) -> Any:
        times.clear()
        return step(self, *arguments)

    pipeline.Pipeline.step = anew  # type: ignore[method-assign]
    fit(job, prepare(job.data, job.model.vocab_size), folder / "run", NoTracker(), Silent(notes=False))
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(times))


def measured(preset: str, p: int, n: int, unit: float) -> float:
    spans = []
    for times in start(sleeping, p, [line_of(preset, p, n), unit]):
        busy = sum(end - begin for begin, end in times)
        span = max(end for _, end in times) - min(begin for begin, _ in times)
        spans.append((span, 1 - busy / span))
    return max(spans)[1]


def main() -> None:
    from benchmarks.harness import machine
    from llmfactory.config.compose import compose_job

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--unit", type=float, default=0.1, help="seconds of one forward pass through a process's layers")
    asked = parser.parse_args()
    print("| preset | idle share | formula |\n|---|---|---|")
    for preset in asked.presets:
        layout: Any = compose_job(line_of(preset, asked.processes, asked.micro_batches)).job.parallel
        ideal = formula(layout.schedule.name, asked.processes, asked.micro_batches, layout.stages_per_process)
        found = measured(preset, asked.processes, asked.micro_batches, asked.unit)
        print(f"| {preset} | {found:.1%} | {ideal:.1%} |", flush=True)
    print(f"\n{asked.processes} processes, {asked.micro_batches} micro-batches, {asked.unit} s a forward pass; {machine()}")


if __name__ == "__main__":
    main()
