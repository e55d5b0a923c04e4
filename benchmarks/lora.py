"""Training steps with low-rank adapters: ours through Lightning, and transformers' Trainer on a model of `peft`.

    python benchmarks/lora.py                     5 rounds
    python benchmarks/lora.py --rounds 3 --steps 2

SmolLM2-135M's sizes with random weights (in float32), rank 8 beside all linear maps, rows of 256 tokens, two a step, fused AdamW,
clipping at norm 1. CPU seconds a step after one step of warm-up, and the highest resident memory of the process in MiB, one thread,
one process a sample. `again`: blocks compute their activations again (`parallel.recompute`, `gradient_checkpointing`); `compiled`:
torch.compile, whose own time is in the warm-up. Each of ours is compared with the Trainer of its kind.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import machine, sample_words

LENGTH, ROWS, RANK, WARM = 256, 2, 8, 1
VOCAB, DIM, LAYERS, HEADS, KV, HIDDEN = 49152, 576, 30, 9, 3, 1536
VARIANTS = ("trainer", "ours", "trainer_compiled", "ours_compiled", "trainer_again", "ours_again")


def ours(steps: int, variant: str) -> tuple[float, float]:
    from benchmarks.train_loop import clock_at, run_fit
    from llmfactory.config.compose import compose_job
    from llmfactory.data.prepare import prepare

    job = compose_job(
        [
            "model=smollm2_135m",
            "data.tokenizer.vocab_size=1024",
            f"data.seq_len={LENGTH}",
            "data.pack.isolate=false",
            "peft=lora",
            f"peft.rank={RANK}",
            f"peft.alpha={2 * RANK}",
            "optim/schedule=constant",
            "optim.lr=1e-4",
            f"trainer.max_steps={WARM + steps}",
            f"trainer.batch_size={ROWS}",
            *("trainer.log_every=50", "trainer.eval_every=null", "trainer.save_every=null", "trainer.keep_best=false"),
            *("trainer.deterministic=false", "trainer.progress=false", "trainer.device=cpu"),
            f"trainer.compile={str(variant.endswith('compiled')).lower()}",
            f"parallel.recompute={str(variant.endswith('again')).lower()}",
        ]
    ).job
    times, tick = clock_at(WARM, WARM + steps)
    run_fit(job, prepare(job.data, job.model.vocab_size), tick)
    return (times[WARM + steps] - times[WARM]) / steps, peak()


def theirs(steps: int, variant: str) -> tuple[float, float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from benchmarks.train_loop import clock_at

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> dict[str, Any]:
            tokens = torch.randint(1024, (LENGTH,), generator=torch.Generator().manual_seed(index))
            return {"input_ids": tokens, "labels": tokens}

    times, tick = clock_at(WARM, WARM + steps)

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            tick(state.global_step)

    sizes = {"vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = LlamaConfig(**sizes, num_key_value_heads=KV, intermediate_size=HIDDEN, tie_word_embeddings=True)
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            max_steps=WARM + steps,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            gradient_checkpointing=variant.endswith("again"),
            torch_compile=variant.endswith("compiled"),
            logging_steps=50,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=[Clock()]).train()
    return (times[WARM + steps] - times[WARM]) / steps, peak()


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(rounds: int, steps: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for turn in range(rounds):
        for name in VARIANTS if turn % 2 == 0 else reversed(VARIANTS):
            seconds, mebibytes = sample_words([__file__, "--sample", name, "--steps", str(steps)], 2)
            found[name].append((seconds, mebibytes))
            print(f"round {turn + 1}/{rounds} {name} {seconds:.3f} s {mebibytes:.0f} MiB", file=sys.stderr)
    print("| variant | CPU s/step | spread | trainer / variant | spread | peak MiB |\n|---|---|---|---|---|---|")
    for name, pairs in found.items():
        kind = name.removeprefix("trainer").removeprefix("ours")
        against = found["trainer" + kind]
        values, peaks = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        ratios = [base[0] / value for base, value in zip(against, values, strict=True)]
        print(
            f"| {name} | {statistics.median(values):.3f} | {min(values):.3f}-{max(values):.3f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} | {statistics.median(peaks):.0f} |"
        )
    print(f"\n{rounds} rounds of {steps} steps, {machine()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--sample", choices=VARIANTS)
    arguments = parser.parse_args()
    if arguments.sample:
        measure = ours if arguments.sample.startswith("ours") else theirs
        print(*measure(arguments.steps, arguments.sample))
    else:
        compare(arguments.rounds, arguments.steps)
