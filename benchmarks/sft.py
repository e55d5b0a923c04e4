"""Fine-tuning on conversations of very different lengths: useful tokens a CPU second, packed against padded batches.

    python benchmarks/sft.py --files my.jsonl other.json            conversations in any format that data=chat reads
    python benchmarks/sft.py --files my.jsonl --rounds 3 --steps 5

A LLaMA of 6 layers of width 256 with 8192 ids, random weights, float32, AdamW. All variants take the same tokens (ours, written once) and
the same number of documents a step on average. `trainer` is transformers' Trainer, which pads random batches to their longest;
`document` and `grouped` are ours, padded to the row and in batches of similar lengths; `packed` is data/pack=best_fit. Useful tokens are
those that are no padding. One process a sample, one thread, variants in turn within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("trainer", "document", "grouped", "packed")
LONGEST = 512
"""Tokens of a row, and of a conversation at most."""
ROWS = 4
"""Packed rows in a step."""
SIZES = {"dim": 256, "layers": 6, "heads": 4, "hidden": 704, "vocab": 8192}


def job_of(folder: Path, files: list[str], pack: str, steps: int, batch: int) -> Any:
    from llmfactory.config.compose import compose_job

    sizes = [f"model.dim={SIZES['dim']}", f"model.n_layers={SIZES['layers']}", f"model.attention.n_heads={SIZES['heads']}"]
    sizes += [f"model.ffn.hidden={SIZES['hidden']}", f"model.vocab_size={SIZES['vocab']}", f"model.max_positions={LONGEST}"]
    return compose_job(
        [
            *("stage=sft", "model=llama_tiny", "model/attention=gqa", "model/head=lm", *sizes),
            *("data=chat", f"data/pack={pack}", f"data.source.files=[{','.join(files)}]", "data.source.bad_share=0.2"),
            *(f"data.form.max_tokens={LONGEST}", f"data.seq_len={LONGEST}", f"data.cache={folder / 'cache'}", "data.held_out=0"),
            *("trainer.eval_every=null", "trainer.keep_best=false", "trainer.save_every=null", "trainer.device=cpu"),
            *(f"trainer.max_steps={steps}", f"trainer.batch_size={batch}", "optim/schedule=constant"),
            *("optim.schedule.warmup_steps=0", "optim.clip_norm=1.0", "trainer.log_every=1000"),
        ]
    ).job


def batch_of(folder: Path, files: list[str]) -> tuple[Any, int]:
    """The token file, and how many documents stand in a packed step on average."""
    from llmfactory.data.prepared import Prepared
    from llmfactory.stage.rows import read_data, task_rows

    job = job_of(folder, files, "best_fit", 1, ROWS)
    data = read_data(job, None, ())
    assert isinstance(data, Prepared)
    rows = task_rows(job, job.stage.objective.build(), data, "train")
    return rows.file, max(1, round(ROWS * rows.file.documents / len(rows)))


def trainer(folder: Path, files: list[str], steps: int) -> float:
    import warnings

    warnings.simplefilter("ignore")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        began = ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.process_time()

    tokens, batch = batch_of(folder, files)
    documents = []
    for number in range(tokens.documents):
        start, stop = int(tokens.offsets[number]), int(tokens.offsets[number + 1])
        ids = torch.from_numpy(tokens.tokens[start : stop + 1].astype("int64"))
        learned = torch.from_numpy(tokens.mask[start : stop + 1].astype("bool"))
        documents.append({"input_ids": ids, "labels": ids.masked_fill(~learned, -100)})  # the model shifts them
    seen = [0]

    def collate(some: list[dict[str, Any]]) -> dict[str, Any]:
        seen[0] += sum(len(one["input_ids"]) - 1 for one in some)
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad([one["input_ids"] for one in some], batch_first=True)
        there = pad([torch.ones_like(one["input_ids"]) for one in some], batch_first=True)
        return {
            "input_ids": ids,
            "attention_mask": there,
            "labels": pad([one["labels"] for one in some], batch_first=True, padding_value=-100),
        }

    config = LlamaConfig(
        vocab_size=SIZES["vocab"],
        hidden_size=SIZES["dim"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["hidden"],
        max_position_embeddings=LONGEST + 1,
    )
    clock = Clock()
    args = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=batch,
        max_steps=steps,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    Trainer(LlamaForCausalLM(config), args, train_dataset=documents, data_collator=collate, callbacks=[clock]).train()  # type: ignore[arg-type]
    return seen[0] / (clock.ended - clock.began)


def ours(folder: Path, files: list[str], pack: str, steps: int) -> float:
    import lightning.pytorch as pl

    from llmfactory.run import fit as fitting
    from llmfactory.run.display import Silent
    from llmfactory.run.saving import Saving
    from llmfactory.stage.rows import read_data
    from llmfactory.tracking.none import NoTracker

    class Clock(pl.Callback):
        began = ended = tokens = 0.0

        def on_train_start(self, *_: Any) -> None:
            self.began = time.process_time()

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.tokens += trainer.strategy.tokens  # type: ignore[attr-defined]

        def on_train_end(self, *_: Any) -> None:
            self.ended = time.process_time()

    batch = ROWS if pack == "best_fit" else batch_of(folder, files)[1]
    job = job_of(folder, files, pack, steps, batch)
    data = read_data(job, None, ())
    clock, train = Clock(), fitting._train
    Saving._save = lambda *_: None  # type: ignore[method-assign,assignment]
    fitting._train = lambda stage, loader, strategy, formats, callbacks, *rest: train(
        stage, loader, strategy, formats, [clock, *callbacks], *rest
    )
    with tempfile.TemporaryDirectory() as place:
        fitting.fit(job, data, Path(place), NoTracker(), Silent(notes=False))
    return clock.tokens / (clock.ended - clock.began)


def sample(folder: Path, variant: str, files: list[str], steps: int) -> float:
    """Useful tokens a CPU second, in a process of its own."""
    command = [sys.executable, __file__, "--variant", variant, "--folder", str(folder), "--steps", str(steps), "--files", *files]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=surroundings)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = [str(Path(file).resolve()) for file in options.files]
    if options.variant == "trainer":
        print(trainer(options.folder, files, options.steps))
        return
    if options.variant:
        pack = {"packed": "best_fit"}.get(options.variant, options.variant)
        print(ours(options.folder, files, pack, options.steps))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokens, batch = batch_of(folder, files)
        print(f"{tokens.documents} conversations of {tokens.inputs / tokens.documents:.0f} tokens on average, {batch} a step")
        speeds: dict[str, list[float]] = {variant: [] for variant in options.variants}
        for number in range(options.rounds):
            for variant in options.variants:
                speeds[variant].append(sample(folder, variant, files, options.steps))
                print(f"round {number + 1}: {variant} {speeds[variant][-1]:,.0f} tokens/s", flush=True)
    for name, values in speeds.items():
        ratios = [one / other for one, other in zip(speeds["packed"], values, strict=True)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"{name:10} {statistics.median(values):8,.0f} tokens/s   packed / it: {statistics.median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main()
