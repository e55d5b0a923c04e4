"""An iteration of learning from rewards: a tiny LLaMA (4 layers, 128 wide, 49,152 ids), 8 answers of 64 tokens.

    OMP_NUM_THREADS=1 python benchmarks/rl.py [--stage grpo] [--rounds 5] [--steps 3]
    OMP_NUM_THREADS=1 python benchmarks/rl.py --stage ppo

`grpo`: all answers to one prompt, one step, against TRL's GRPOTrainer. `ppo`: an answer to each of 8 prompts, four epochs of one step,
against a plain loop that does what TRL's PPOTrainer did (`plain_ppo.py`; TRL 1.16 has none any more). Both sides take turns, each
sample a process of its own that runs a few iterations; what is compared is its CPU time from one iteration's end to the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.harness import sample_words
from llmfactory.config.compose import compose_job
from llmfactory.run.display import Silent
from llmfactory.run.fit import fit
from llmfactory.stage.rows import read_data
from llmfactory.tracking.tracker import Tracker

VOCABULARY, LAYERS, DIM, HEADS, HIDDEN, ANSWERS, TOKENS, KL = 49152, 4, 128, 4, 384, 8, 64, 0.04
EPOCHS = 4
"""Of PPO."""
PARTS = ("rollout", "score", "update")
PROMPT = " ".join(f"w{number}" for number in range(100, 116))


def files(folder: Path) -> None:
    """A tokenizer with a word for each id, and prompts."""
    words = {f"w{number}": number for number in range(VOCABULARY - 1)} | {"</s>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}))
    rows = [json.dumps({"prompt": f"{PROMPT} w{number}"}) for number in range(64)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")


class Clock(Tracker):
    """CPU seconds at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if "loss" in metrics:
            self.times.append(time.process_time())
            self.rows.append(metrics)

    def rewind(self, step: int) -> None:
        pass

    def finish(self, summary: dict[str, float]) -> None:
        pass


def between(times: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(times)]


def ours(folder: Path, steps: int, stage: str = "grpo") -> tuple[list[float], dict[str, float]]:
    """Seconds of each iteration but the first, and the share of each part."""
    epochs = EPOCHS if stage == "ppo" else 1
    own = [f"stage.epochs={EPOCHS}"] if stage == "ppo" else [f"stage.group={ANSWERS}"]
    sizes = [f"model.vocab_size={VOCABULARY}", f"model.n_layers={LAYERS}", f"model.dim={DIM}", f"model.attention.n_heads={HEADS}"]
    job = compose_job(
        [
            *(f"stage={stage}", "stage/grader=[target_length]", "stage.graders.target_length.target=50"),
            *("data=prompts", "data.form.chat=false", f"data.source.files=[{folder / 'prompts.jsonl'}]", "data.held_out=0"),
            *("data/tokenizer=hf_file", f"data.tokenizer.file={folder / 'tokenizer.json'}", "data.workers=1"),
            *("data.seq_len=64", "data.form.max_tokens=64", f"data.cache={folder / 'cache'}", f"output_dir={folder}"),
            *("model=llama_tiny", "model/attention=gqa", *sizes, f"model.ffn.hidden={HIDDEN}", "model.max_positions=256"),
            *(f"stage.max_tokens={TOKENS}", *own, f"stage.objective.kl_coef={KL}", "optim.lr=1e-6"),
            *(
                f"trainer.batch_size={ANSWERS}",
                f"trainer.max_steps={steps * epochs}",
                "trainer.log_every=1",
                "trainer.eval_every=null",
            ),
            *("trainer.save_every=null", "trainer.keep_best=false", "trainer.device=cpu", "trainer.sample=false"),
            "optim/schedule=constant",
        ]
    ).job
    clock = Clock()
    with tempfile.TemporaryDirectory() as run:
        fitted = fit(job, read_data(job, None, ()), Path(run), clock, Silent(notes=False))
    assert fitted.supply is not None
    figures = fitted.supply.figures()
    return between(clock.times[epochs - 1 :: epochs]), {name: figures[f"{name}_share"] for name in PARTS}


def theirs(folder: Path, steps: int, stage: str = "grpo") -> tuple[list[float], dict[str, float]]:
    return plain(folder, steps) if stage == "ppo" else grpo(folder, steps)


def plain(folder: Path, steps: int) -> tuple[list[float], dict[str, float]]:
    from benchmarks.plain_ppo import Settings, train

    torch.manual_seed(0)
    rows = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    prompts = torch.tensor([[int(word[1:]) for word in row.split()] for row in rows])
    settings = Settings(answers=ANSWERS, tokens=TOKENS, kl_coef=KL, epochs=EPOCHS)
    return train(config(), prompts, lambda ids: -abs(len(ids) - 50.0) + len(set(ids)), steps, settings)


def config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )


def grpo(folder: Path, steps: int) -> tuple[list[float], dict[str, float]]:
    from datasets import Dataset
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    times: list[float] = []
    spent = {"rollout": 0.0}

    class Watching(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.process_time())

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>", pad_token="</s>")
    torch.manual_seed(0)
    published = str(folder / "published")
    LlamaForCausalLM(config()).save_pretrained(published)
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    with tempfile.TemporaryDirectory() as run:
        trainer = GRPOTrainer(
            model=published,
            reward_funcs=lambda completions, **_: [-abs(len(one.split()) - 50.0) + len(set(one.split())) for one in completions],
            args=GRPOConfig(
                output_dir=run,
                per_device_train_batch_size=ANSWERS,
                num_generations=ANSWERS,
                max_completion_length=TOKENS,
                max_steps=steps,
                beta=KL,
                learning_rate=1e-6,
                use_cpu=True,
                model_init_kwargs={"dtype": "float32"},
                bf16=False,
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watching()],
        )
        plain = trainer.model.generate

        def generate(*some: object, **more: object) -> object:
            begin = time.process_time()
            try:
                return plain(*some, **more)
            finally:
                spent["rollout"] += time.process_time() - begin

        trainer.model.generate = generate
        begin = time.process_time()
        trainer.train()
        spent["whole"] = time.process_time() - begin
    return between(times), {"rollout": spent["rollout"] / spent["whole"]}


def sample(name: str, stage: str, steps: int) -> None:
    """One side in this process: what the other one tells the allocator must not help it. Prints seconds, then the shares."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        files(Path(place))
        seconds, shares = {"ours": ours, "theirs": theirs}[name](Path(place), steps, stage)
    print(statistics.median(seconds), *(shares.get(part, 0.0) for part in PARTS))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", choices=("grpo", "ppo"), default="grpo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--sample", choices=("ours", "theirs"), help="one measurement in this process")
    options = parser.parse_args()
    if options.sample:
        sample(options.sample, options.stage, options.steps)
        return
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    own = ["--stage", options.stage, "--steps", str(options.steps)]
    for number in range(options.rounds):
        for name in list(found)[:: 1 if number % 2 else -1]:
            seconds, *shares = sample_words([__file__, "--sample", name, *own], 1 + len(PARTS))
            found[name].append(seconds)
            split = ", ".join(f"{part} {share:.0%}" for part, share in zip(PARTS, shares, strict=True) if share)
            print(f"round {number + 1} {name}: {seconds:.2f} s an iteration ({split})", flush=True)
    ratios = [b / a for a, b in zip(found["ours"], found["theirs"], strict=True)]
    medians = {name: statistics.median(some) for name, some in found.items()}
    print(
        f"ours {medians['ours']:.2f} s, theirs {medians['theirs']:.2f} s: x {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


if __name__ == "__main__":
    main()
