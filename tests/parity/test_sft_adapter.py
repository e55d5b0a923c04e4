"""Instructions learned beside a published model: `transformers` and `peft` say to a conversation what we say, adapted and merged."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_job import toy_job, train

from llmfactory.config.spec import Job
from llmfactory.data.form.spec import Chat
from llmfactory.data.form.template.prompt import chat_ids
from llmfactory.data.pack.spec import BestFit
from llmfactory.data.source.spec import Files
from llmfactory.peft.spec import Lora
from llmfactory.stage.format.spec import Hf, Peft
from llmfactory.stage.initial import checkpoint_of, fill, load_tokenizer
from llmfactory.stage.spec import Export, Sft

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")]
ENDS: dict[str, Any] = {"trainer__max_steps": 3, "trainer__eval_every": None, "trainer__save_every": None, "optim__lr": 0.05}


def export(start: Job, path: Path, form: Any) -> None:
    stage = Export(path=str(path), format=form)
    stage.build().run(dataclasses.replace(start, stage=stage), None)


def instructed(folder: Path, **changes: Any) -> Job:
    path = folder / "chat.jsonl"
    rows = [{"instruction": f"say {number}", "output": "so " * (number % 4 + 1)} for number in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = toy_job(folder, pack=BestFit(), data__source=Files(files=[str(path)], field=None), data__form=Chat(), **ENDS, **changes)
    return dataclasses.replace(job, stage=Sft(objective=job.stage.objective))  # type: ignore[attr-defined]


def test_an_adapter_taught_by_conversations_answers_there_as_here(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    train(toy_job(tmp_path, **ENDS), tmp_path / "base")
    export(toy_job(tmp_path, init=str(tmp_path / "base")), tmp_path / "hf", Hf())
    learning = instructed(tmp_path, init=str(tmp_path / "hf"), peft=Lora(rank=2, alpha=6.0))
    train(learning, tmp_path / "sft")
    done = dataclasses.replace(learning, init=str(tmp_path / "sft"))
    export(done, tmp_path / "adapter", Peft())
    export(done, tmp_path / "merged", Hf())

    checkpoint = checkpoint_of(done, "testing")
    tokenizer = load_tokenizer(checkpoint, 257)
    ids = chat_ids(tokenizer, [{"role": "user", "content": "say 7"}])
    tokens = torch.tensor([ids])
    ours, before = learning.model.build(), learning.model.build()
    fill(ours, checkpoint)  # merged, as `init` gives it
    fill(before, tmp_path / "hf")
    batch = {"tokens": tokens, "positions": torch.arange(len(ids))[None], "segments": torch.ones_like(tokens)}

    def logits(model: Any) -> torch.Tensor:
        found: torch.Tensor = model.eval().head(model(tokens, model.context(batch)))
        return found

    with torch.no_grad():
        here, was = logits(ours), logits(before)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
        torch.testing.assert_close(base(tokens).logits, was, rtol=1e-5, atol=1e-5)
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(adapted(tokens).logits, here, rtol=1e-5, atol=1e-5)
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(tokens).logits, was, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(adapted.merge_and_unload()(tokens).logits, here, rtol=1e-5, atol=1e-5)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(merged(tokens).logits, here, rtol=1e-5, atol=1e-5)
    assert (here - was).abs().max() > 0.05, "something was learned"
