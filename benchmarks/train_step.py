"""A training step of 20 to 30 M parameters: ours, the same model in `transformers`, and the floor, its matrix products alone.

    python benchmarks/train_step.py                          all rows of both sizes, 5 rounds
    python benchmarks/train_step.py --sizes llama --rounds 1
    python benchmarks/train_step.py --only hf ours floor_one_dnn
    python benchmarks/train_step.py --rounds 1 --steps 1     every row, roughly

`llama`: L6 D384 H6 FF1024 V32000, `gpt2`: L6 D384 H6 FF1536 V50257; heads tied, 8 rows of 256 random tokens, float32, AdamW (fused),
gradients clipped at norm 1. `ours` and `hf` are bare loops, eager and under torch.compile, `trainer` is transformers' Trainer with its
defaults but for the clock. `floor` replays the model's own linear maps with nothing between them: of each the product of the forward
pass and both of the backward pass, by `torch.mm` into memory that is there already (`floor_one_dnn`: by oneDNN, which on an AMD
processor is the faster library); what attention multiplies is not in it.

Ours sets `mallopt` as a run does, and so do the floors; the others run as they come. `hf+mallopt` and its like have ours' settings,
`ours-mallopt` runs without. Seconds of CPU time a step, median over steps, one thread, one process a sample; compilers take theirs in
a step that is not counted.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.model_step import ours, sizes, transformers

WARM = 1
"""Steps that are not counted: compilers take theirs there."""
VARIANTS = (
    *("hf", "trainer", "ours", "hf_compiled", "ours_compiled", "floor", "floor_one_dnn"),
    *("hf+mallopt", "trainer+mallopt", "hf_compiled+mallopt", "ours-mallopt", "ours_compiled-mallopt"),
)
PAIRS = (
    ("hf", "ours", "1.15, each side's own allocator"),
    ("trainer", "ours", "1.2, each side's own allocator"),
    ("hf+mallopt", "ours", "1.0, mallopt on both sides"),
    ("trainer+mallopt", "ours", "1.0, mallopt on both sides"),
    ("hf", "ours-mallopt", "1.0, mallopt on neither side"),
    ("trainer", "ours-mallopt", "1.0, mallopt on neither side"),
    ("hf_compiled", "ours_compiled", "1.0, each side's own allocator"),
    ("hf_compiled+mallopt", "ours_compiled", "1.0, mallopt on both sides"),
    ("hf_compiled", "ours_compiled-mallopt", "1.0, mallopt on neither side"),
    *((floor, "ours", "0.72") for floor in ("floor", "floor_one_dnn")),
    *((floor, "ours_compiled", "0.80") for floor in ("floor", "floor_one_dnn")),
)
"""(the other side, ours, the goal of its time divided by ours)."""


def shapes(name: str, size: dict[str, int]) -> list[tuple[int, int, int]]:
    """(rows, inputs, outputs) of every linear map of the model, the head's included."""
    rows, dim, hidden = size["rows"] * size["length"], size["dim"], size["hidden"]
    maps = [(dim, dim)] * 4 + ([(dim, hidden)] if name == "gpt2" else [(dim, hidden)] * 2) + [(hidden, dim)]
    return [(rows, i, o) for i, o in maps * size["layers"] + [(dim, size["vocab"])]]


def floor(name: str, size: dict[str, int], one_dnn: bool) -> Callable[[Any], None]:
    import torch

    from llmfactory.kernel.product import product

    maps = shapes(name, size)
    x = {(n, i): torch.randn(n, i) for n, i, _ in maps}
    y = {(n, o): torch.randn(n, o) for n, _, o in maps}
    w = {(o, i): torch.randn(o, i) for _, i, o in maps}
    out_x, out_y, out_w = ({key: torch.empty_like(value) for key, value in group.items()} for group in (x, y, w))

    def by_one_dnn(tokens: Any) -> None:
        for n, i, o in maps:
            product(x[n, i], w[o, i])
            product(y[n, o], w[o, i].t())
            product(y[n, o].t(), x[n, i].t())

    def step(tokens: Any) -> None:
        for n, i, o in maps:
            torch.mm(x[n, i], w[o, i].t(), out=out_y[n, o])
            torch.mm(y[n, o], w[o, i], out=out_x[n, i])
            torch.mm(y[n, o].t(), x[n, i], out=out_w[o, i])

    return by_one_dnn if one_dnn else step


def trained(name: str, size: dict[str, int], variant: str) -> Callable[[Any], None]:
    """A bare loop's step."""
    import torch

    from llmfactory.kernel.linear import quicken

    model, loss = ours(name, size, fused=True) if variant.startswith("ours") else transformers(name, size)
    model.train()
    if variant.startswith("ours"):
        quicken(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    loss = torch.compile(loss) if variant.endswith("_compiled") else loss

    def step(tokens: Any) -> None:
        loss(tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def trainer(name: str, size: dict[str, int], tokens: list[Any]) -> list[float]:
    """CPU seconds of the steps of transformers' Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = [{"input_ids": row[:-1], "labels": row[:-1]} for step in tokens for row in step]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times.append(time.process_time())

    model, _ = transformers(name, size)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=size["rows"],
            max_steps=len(tokens),
            learning_rate=1e-4,
            weight_decay=0.1,
            max_grad_norm=1.0,
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return [after - before for before, after in itertools.pairwise(times)]


def measure(name: str, variant: str, steps: int) -> float:
    """Median CPU seconds of `steps` steps."""
    import torch

    from llmfactory.run.allocator import keep_freed_memory

    kind = variant.removesuffix("+mallopt").removesuffix("-mallopt")
    if variant.endswith("+mallopt") or (kind.startswith(("ours", "floor")) and kind == variant):
        keep_freed_memory()
    size = sizes(name)
    generator = torch.Generator().manual_seed(0)
    tokens = [
        torch.randint(0, size["vocab"], (size["rows"], size["length"] + 1), generator=generator) for _ in range(WARM + steps)
    ]
    if kind == "trainer":
        return statistics.median(trainer(name, size, tokens))
    step = floor(name, size, kind == "floor_one_dnn") if kind.startswith("floor") else trained(name, size, kind)
    seconds = []
    for some in tokens:
        start = time.process_time()
        step(some)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[WARM:])


def compare(numbers: dict[str, list[float]]) -> None:
    """The ratios that goals are about, taken within each round."""
    print("\n| ratio | median | spread | goal |\n|---|---|---|---|")
    for other, mine, goal in PAIRS:
        if other in numbers and mine in numbers:
            ratios = [theirs / own for theirs, own in zip(numbers[other], numbers[mine], strict=True)]
            print(f"| {other} / {mine} | {statistics.median(ratios):.3f} | {min(ratios):.3f}-{max(ratios):.3f} | {goal} |")


def profile(name: str, variant: str) -> None:
    """What one step of ours, or of the other side, consists of: operations by their own time."""
    import torch

    from llmfactory.run.allocator import keep_freed_memory

    keep_freed_memory()
    size, step = sizes(name), trained(name, sizes(name), variant)
    tokens = torch.randint(0, size["vocab"], (size["rows"], size["length"] + 1))
    for _ in range(WARM + 1):
        step(tokens)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step(tokens)
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("llama", "gpt2"), default=["llama", "gpt2"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="that are counted, of each sample")
    parser.add_argument(
        "--only", nargs="+", choices=VARIANTS, default=VARIANTS, help="these rows; the first is what others are compared with"
    )
    parser.add_argument("--sample", nargs=2, metavar=("SIZE", "VARIANT"), help="one measurement in this process")
    parser.add_argument("--profile", nargs=2, metavar=("SIZE", "VARIANT"), help="operations of one step by their own time")
    arguments = parser.parse_args()
    if arguments.sample:
        print(measure(*arguments.sample, arguments.steps))
        return
    if arguments.profile:
        profile(*arguments.profile)
        return
    from benchmarks.harness import interleave

    for name in arguments.sizes:
        print(f"\n## {name}\n")
        variants = {variant: [__file__, "--sample", name, variant, "--steps", str(arguments.steps)] for variant in arguments.only}
        compare(interleave(variants, arguments.only[0], arguments.rounds, "CPU s/step"))


if __name__ == "__main__":
    main()
