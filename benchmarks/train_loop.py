"""Whole training loops: ours through Lightning, a bare PyTorch loop on our model, and transformers' Trainer on its own.

    python benchmarks/train_loop.py                              all sizes, 5 rounds
    python benchmarks/train_loop.py --sizes llama_tiny --rounds 7

Sizes as in model_step.py. The same rows of real text (the prepared `data=pydocs`, documents not isolated) on all sides, fused
AdamW, clipping at norm 1, loss reported every 50 steps, each side's default allocator settings (ours sets mallopt when
training starts, and so does the bare loop). CPU seconds a step between the end of a warm-up and the end of training, one
thread, one process a sample. `compiled` variants use torch.compile; their warm-up is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.model_step import ours, sizes, transformers

STEPS = {"gpt2": (3, 8), "llama": (3, 8), "gpt2_tiny": (5, 40), "llama_tiny": (5, 40), "smallest": (100, 500)}
"""Steps of warm-up, steps measured."""
EAGER = ("trainer", "fit", "bare")
COMPILED = ("trainer_compiled", "fit_compiled")
LAYOUTS = ("fit", "fit_one_rank", "bare")
MORE = {"fit_compiled": ["trainer.compile=true"], "fit_one_rank": ["parallel=ddp", "launch=local", "launch.processes=1"]}
"""Overrides of a variant."""


def shape(name: str) -> dict[str, int]:
    if name == "smallest":  # where a loop's own cost shows: a step of about a millisecond
        return {"vocab": 512, "dim": 32, "layers": 2, "heads": 2, "hidden": 64, "rows": 4, "length": 32}
    return sizes(name)


def overrides(name: str, size: dict[str, int], steps: int) -> list[str]:
    model = "gpt2_tiny" if name.startswith("gpt2") else "llama_tiny"
    return [
        f"model={model}",
        f"model.vocab_size={size['vocab']}",
        f"model.dim={size['dim']}",
        f"model.n_layers={size['layers']}",
        f"model.attention.n_heads={size['heads']}",
        f"model.ffn.hidden={size['hidden']}",
        f"data.tokenizer.vocab_size={min(size['vocab'], 4096)}",
        f"data.seq_len={size['length']}",
        "data.pack.isolate=false",
        "optim/schedule=constant",
        "optim.lr=1e-4",
        f"trainer.max_steps={steps}",
        f"trainer.batch_size={size['rows']}",
        "trainer.log_every=50",
        "trainer.eval_every=null",
        "trainer.save_every=null",
        "trainer.keep_best=false",
        "trainer.deterministic=false",
        "trainer.progress=false",
    ]


def clock_at(warm: int, steps: int) -> tuple[dict[int, float], Any]:
    """A callable that notes the process's CPU time when steps `warm` and `steps` are done."""
    times: dict[int, float] = {}

    def tick(step: int) -> None:
        if step in (warm, steps):
            times[step] = time.process_time()

    return times, tick


def measure(name: str, variant: str) -> float:
    from llmfactory.config.compose import compose_job
    from llmfactory.data.prepare import prepare

    size, (warm, counted) = shape(name), STEPS[name]
    steps = warm + counted
    job = compose_job([*overrides(name, size, steps), *MORE.get(variant, [])]).job
    data = prepare(job.data, job.model.vocab_size)
    times, tick = clock_at(warm, steps)
    if variant.startswith("fit"):
        run_fit(job, data, tick)
    elif variant == "bare":
        run_bare(name, size, job, data, steps, tick)
    else:
        run_trainer(name, size, job, data, steps, tick, compiled=variant == "trainer_compiled")
    return (times[steps] - times[warm]) / counted


def run_fit(job: Any, data: Any, tick: Any) -> None:
    import lightning.pytorch as pl

    from llmfactory.run import fit as module
    from llmfactory.run.display import Silent
    from llmfactory.tracking.none import NoTracker

    class Clock(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            tick(trainer.global_step)

    train = module._train

    def timed(stage: Any, loader: Any, strategy: Any, formats: Any, callbacks: list[Any], *rest: Any) -> None:
        train(stage, loader, strategy, formats, [Clock(), *callbacks], *rest)

    module._train = timed
    with tempfile.TemporaryDirectory() as folder:
        module.fit(job, data, Path(folder), NoTracker(), Silent(notes=False))


def run_bare(name: str, size: dict[str, int], job: Any, data: Any, steps: int, tick: Any) -> None:
    import torch

    from llmfactory.data.loader import StepLoader
    from llmfactory.kernel.linear import quicken
    from llmfactory.run.allocator import keep_freed_memory

    keep_freed_memory()
    model, loss_of = ours(name, size, fused=True)
    quicken(model)  # as every run does, so that the loops alone differ
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    loader = StepLoader(job.data.pack.build(data.train, size["length"]), batch_size=size["rows"], seed=0)
    for step, batch in enumerate(itertools.islice(loader, steps), start=1):
        loss = loss_of(torch.cat([batch["tokens"], batch["labels"][:, -1:]], 1))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            print(step, loss.item(), norm.item())
        tick(step)


def run_trainer(name: str, size: dict[str, int], job: Any, data: Any, steps: int, tick: Any, compiled: bool) -> None:
    import numpy as np
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = job.data.pack.build(data.train, size["length"])

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            tokens = rows.read(np.array([index]))["tokens"][0]
            return {"input_ids": tokens, "labels": tokens}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tick(state.global_step)

    model, _ = transformers(name, size)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=size["rows"],
            max_steps=steps,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            weight_decay=0.1,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            torch_compile=compiled,
        )
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="compare the torch.compile variants instead")
    parser.add_argument(
        "--layouts", action="store_true", help="compare parallel=single, parallel=ddp of one rank and the bare loop"
    )
    parser.add_argument("--sample", nargs=2, metavar=("SIZE", "VARIANT"), help="one measurement in this process")
    arguments = parser.parse_args()
    if arguments.sample:
        print(measure(*arguments.sample))
        return
    from benchmarks.harness import interleave

    for name in arguments.sizes:
        print(f"\n## {name}\n")
        compared = LAYOUTS if arguments.layouts else COMPILED if arguments.compiled else EAGER
        variants = {variant: [__file__, "--sample", name, variant] for variant in compared}
        interleave(variants, next(iter(variants)), arguments.rounds, "CPU s/step")


if __name__ == "__main__":
    main()
