"""How long until the first training step of the default job is done, against importing torch and lightning alone.

    python benchmarks/startup.py --rounds 5

CPU seconds of the whole process, one thread, data prepared before. Also the answers that import neither: `--help`,
`options`, `--cfg job`, a config error.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LIGHT = {
    "--version": ["--version"],
    "--help": ["--help"],
    "options": ["options", "model/attention"],
    "--cfg job": ["--cfg", "job"],
    "config error": ["learning_rate=1", "model=lama", "name=x"],
}


def imports() -> None:
    import lightning
    import torch

    del lightning, torch
    print(time.process_time())


def first_step() -> None:
    """The command itself, cut off when its first optimizer step is done."""
    from llmfactory.run.command import run_command

    with tempfile.TemporaryDirectory() as folder:
        import os

        from llmfactory.parallel import strategy

        step = strategy.MeshStrategy.optimizer_step

        def timed(*arguments: object, **options: object) -> None:
            step(*arguments, **options)  # type: ignore[arg-type]
            print(time.process_time(), flush=True)
            os._exit(0)

        strategy.MeshStrategy.optimizer_step = timed  # type: ignore[assignment,method-assign]
        run_command(["name=startup", f"output_dir={folder}", "trainer.progress=false"])


def light(name: str) -> None:
    """CPU seconds of a command that starts nothing, in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "llmfactory.run", *LIGHT[name]], capture_output=True, cwd=Path(__file__).resolve().parent.parent
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sample", choices=["imports", "first_step", *LIGHT], help="one measurement in this process")
    arguments = parser.parse_args()
    if arguments.sample:
        {"imports": imports, "first_step": first_step}.get(arguments.sample, lambda: light(arguments.sample))()
        return
    from benchmarks.harness import interleave
    from llmfactory.config.compose import compose_job
    from llmfactory.data.prepare import prepare

    job = compose_job([]).job
    prepare(job.data, job.model.vocab_size)
    variants = {name: [__file__, f"--sample={name}"] for name in ("imports", "first_step", *LIGHT)}
    interleave(variants, "imports", arguments.rounds, "CPU s")


if __name__ == "__main__":
    main()
