"""Runs of a tiny model that adds digits, for stages that begin with a trained one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from llmfactory.config.compose import compose_job
from llmfactory.run.start import start

MODEL = ["model=llama_tiny", "model.dim=32", "model.n_layers=2", "model.attention.n_heads=2", "model.ffn.hidden=48"]
MODEL += ["model.max_positions=64", "model.vocab_size=260", "data/tokenizer=bytes"]
TRAINER = ["trainer.device=cpu", "trainer.progress=false", "trainer.save_every=null", "trainer.eval_every=null"]
TRAINER += [
    "trainer.keep_best=false",
    "trainer.sample=false",
    "trainer.batch_size=16",
    "optim.schedule.warmup_steps=2",
    "optim.lr=4e-3",
]
ROWS = ["data.held_out=0", "data.seq_len=48", "data.form.max_tokens=48"]


def sums(folder: Path, count: int = 36) -> Path:
    """A file of questions and answers."""
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a in range(6) for b in range(6)]
    random.Random(0).shuffle(rows)
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    return path


def ran(folder: Path, name: str, *line: str) -> dict[str, Any]:
    """The results of a job with its run folder below `outputs`."""
    return start(compose_job([*line, f"output_dir={folder}/outputs", f"name={name}", f"data.cache={folder}/cache"]))


def trained(folder: Path, name: str, steps: int, *line: str) -> Path:
    """The run of a model that was fine-tuned on sums."""
    every = ["stage=sft", "data=chat", f"data.source.files=[{sums(folder)}]", *ROWS, *TRAINER, f"trainer.max_steps={steps}"]
    ran(folder, name, *every, *([] if any(word.startswith("init=") for word in line) else MODEL), *line)
    return folder / "outputs" / name
