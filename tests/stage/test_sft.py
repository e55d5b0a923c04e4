"""Fine-tuning on conversations: what is learned, from what it starts, and several tasks at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_job import Memory, Notes

from llmfactory.checkpoint import io
from llmfactory.config.compose import compose_job
from llmfactory.config.spec import Job
from llmfactory.core.errors import ConfigError
from llmfactory.parallel.mesh import World
from llmfactory.run.fit import Fitted, fit
from llmfactory.run.train import figures_of
from llmfactory.stage.initial import checkpoint_of
from llmfactory.stage.rows import read_data

SMALL = [
    *("model=llama_tiny", "model.vocab_size=300", "model.dim=32", "model.n_layers=2", "model/attention=gqa"),
    *("model.attention.n_heads=2", "model.ffn.hidden=48", "model.max_positions=128", "data/tokenizer=bytes"),
]
RUN = [
    *("data.seq_len=128", "data.form.max_tokens=128", "data.held_out=0.2", "data.workers=1", "optim.lr=1e-2"),
    *(
        "optim/schedule=constant",
        "optim.schedule.warmup_steps=5",
        "trainer.batch_size=8",
        "tracking=none",
        "trainer.log_every=10",
    ),
    *("trainer.save_every=null", "trainer.keep_best=false", "trainer.eval_every=null", "trainer.device=cpu"),
]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def repeating(folder: Path, name: str, times: int, questions: int = 100, always: str | None = None) -> str:
    """The answer to a word is the word so many times, or `always` the same; questions at the end of a conversation come twice."""
    path = folder / f"{name}.jsonl"
    rows = []
    for number in range(questions):
        first, second = WORDS[number % 10], WORDS[(number // 10 + number) % 10] + "s" * (number // 20)
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": first},
                    {"role": "assistant", "content": " ".join([always or first] * times)},
                    {"role": "user", "content": second},
                    {"role": "assistant", "content": " ".join([always or second] * times)},
                ]
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def trained(job: Job, folder: Path) -> tuple[dict[str, Any], Memory, Fitted]:
    tracker = Memory()
    checkpoint = None if job.init is None else checkpoint_of(job, "starting")
    data = read_data(job, checkpoint, job.stage.objective.specials())  # type: ignore[attr-defined]
    fitted = fit(job, data, folder, tracker, Notes())
    return figures_of(job, fitted, data, World(torch.device("cpu"))), tracker, fitted


def test_it_learns_to_answer(tmp_path: Path) -> None:
    """What comes after the first word of an answer is known; the questions themselves are no more learned than before."""
    line = ["stage=sft", "data=chat", f"data.source.files=[{repeating(tmp_path, 'twice', 2)}]", f"data.cache={tmp_path}/cache"]
    job = compose_job([*line, *SMALL, *RUN, "trainer.max_steps=80"]).job
    figures, tracker, _ = trained(job, tmp_path / "run")
    assert figures["held_out_loss"] < 0.4 < 3 < tracker.rows[1]["loss"]
    assert 0.2 < figures["learned_share"] < 0.6
    assert figures["loss_unit"] == "nats per token"
    question = figures["sample"]["prompt"].removesuffix("\n\nAssistant:").rpartition("User: ")[2]
    assert question in WORDS
    assert figures["sample"]["text"].strip() == f"{question} {question}"


def test_several_tasks_at_once(tmp_path: Path) -> None:
    line = ["stage=sft", "data=mixture", "data/form=chat", "data/pack=best_fit", "data/mix=fixed"]
    for name, times in (("once", 1), ("thrice", 3)):
        line += [f"data/source@data.sources.{name}=records", f"data.sources.{name}.files=[{repeating(tmp_path, name, times)}]"]
    line += ["data.mix.weights={once: 1, thrice: 3}", f"data.cache={tmp_path}/cache"]
    job = compose_job([*line, *SMALL, *RUN, "trainer.max_steps=12", "trainer.sample=false"]).job
    figures, *_ = trained(job, tmp_path / "run")
    assert {"held_out_loss/once", "held_out_loss/thrice"} <= set(figures)
    assert figures["tokens/thrice"] == pytest.approx(3 * figures["tokens/once"], rel=0.25)


def test_old_conversations_are_replayed_beside_new_ones(tmp_path: Path) -> None:
    """Some of the old task among the new keeps as much of it as two tasks that contradict each other allow; without, it is lost."""
    old, new = repeating(tmp_path, "old", 1), repeating(tmp_path, "new", 1, always="Z" * 5)
    cache = f"data.cache={tmp_path}/cache"
    first = compose_job(["stage=sft", "data=chat", f"data.source.files=[{old}]", cache, *SMALL, *RUN, "trainer.max_steps=60"]).job
    trained(first, tmp_path / "first")
    mixed = ["stage=sft", "data=mixture", "data/form=chat", "data/pack=best_fit", "data/mix=fixed", cache, *RUN]
    mixed += [f"init={tmp_path}/first", *SMALL[:-1], "trainer.max_steps=30", "trainer.sample=false"]
    mixed += ["data/source@data.sources.new=records", f"data.sources.new.files=[{new}]"]
    mixed += ["data/source@data.sources.old=records", f"data.sources.old.files=[{old}]"]
    losses = {}
    for share in (0.0, 0.3):
        job = compose_job([*mixed, f"data.mix.weights={{new: {1 - share}, old: {share}}}"]).job
        losses[share] = trained(job, tmp_path / f"run{share}")[0]["held_out_loss/old"]
    assert losses[0.3] < 0.5 * losses[0.0]


def test_an_encoder_decoder_answers_labelled_examples() -> None:
    line = ["stage=sft", "model=t5_small", "data=chat", "data.source.files=[a.jsonl]", "data.seq_len=512"]
    with pytest.raises(ConfigError, match="trains models of the kind decoder") as raised:
        compose_job([*line, "data.form.max_tokens=512"])
    repair = str(raised.value.problems[0].repair).split(" ")
    job = compose_job(["stage=sft", "model=t5_small", *repair, "data.seq_len=512"]).job
    assert job.data.task.kind == "tokens"  # type: ignore[attr-defined]


def test_a_published_model_is_asked_by_its_own_template(tmp_path: Path) -> None:
    from tiny_published import hf_folder

    folder = hf_folder(tmp_path / "published")
    turns = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}<|endoftext|>assistant: {% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "chat_template": template}))
    line = ["stage=sft", f"init={folder}", "data=chat", f"data.source.files=[{repeating(tmp_path, 'twice', 2, 40)}]"]
    job = compose_job(
        [*line, *RUN, "data.seq_len=64", "data.form.max_tokens=64", f"data.cache={tmp_path}/cache", "trainer.max_steps=2"]
    ).job
    figures, *_ = trained(job, tmp_path / "run")
    assert figures["sample"]["prompt"].endswith("assistant: "), "its own template"
    assert io.find(tmp_path / "run").is_dir()
