"""A conversation is read in training as it is put when a model is asked: the same ids, those of `transformers`, and so the same
log-probability of every token that is learned, whatever stands beside it in a row."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_templates import equipped, source_of
from token_files import token_file_of
from torch import Tensor

from llmfactory.core.batch import IGNORE
from llmfactory.data.clean.page import Page
from llmfactory.data.clean.step import Kept
from llmfactory.data.form.mismatched import MismatchedRows
from llmfactory.data.form.record_rows import PromptRows, RecordRows
from llmfactory.data.form.records import RecordForm
from llmfactory.data.form.shared_prompt import branched
from llmfactory.data.form.spec import Chat, Kto, Preference, Prompts, RecordSpec, Reward
from llmfactory.data.form.template.prompt import chat_ids
from llmfactory.data.form.template.spec import Jinja
from llmfactory.data.pack.spec import BestFit, Concat, Document, Grouped, PackSpec
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.stage.rollout import Written, laid_out, score

T = 160
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "some words"}]
SAID = ("more words", "and", "some")
TEMPLATES = ["plain", "chatml", "llama2"]
"""With a begin token that the tokenizer names; with none; with one that the template spells."""


@functools.cache
def model() -> Any:
    from llmfactory.config.compose import compose_job
    from llmfactory.model.declarations import declarations
    from llmfactory.model.initialize import initialize

    line = ["model=llama_tiny", "model.vocab_size=400", "model.dim=16", "model.n_layers=2", "model.attention.n_heads=2"]
    made = compose_job([*line, "model.ffn.hidden=24", "model.max_positions=512"]).job.model.build().double()
    initialize(made, 0, lambda parameter, value: parameter.copy_(value), declarations(made))
    return made.eval()


def rows_of(folder: Path, spec: RecordSpec, records: list[dict[str, Any]], pack: PackSpec, tokenizer: HfTokenizer) -> Any:
    form = spec.build()
    assert isinstance(form, RecordForm)
    pages = [form.normalize(Page("x", json.dumps(record))) for record in records]
    encoded = form.encode(tokenizer, [page.text for page in pages if isinstance(page, Kept)])
    return form.rows(pack, token_file_of(folder, tokenizer, encoded), T)


def theirs(name: str, tokenizer: HfTokenizer, messages: list[dict[str, str]], asks: bool) -> list[int]:
    from transformers import PreTrainedTokenizerFast

    inner = type(tokenizer.inner).from_str(tokenizer.inner.to_str())
    end = tokenizer.inner.id_to_token(tokenizer.end_id)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=source_of(name)[0], bos_token=end, eos_token=end)
    found: list[int] = made.apply_chat_template(messages, add_generation_prompt=asks)["input_ids"]
    return found


@torch.no_grad()
def learned(batch: dict[str, Tensor], isolated: bool) -> list[dict[str, list[Any]]]:
    """Of each document: what is read, what is learned, and the log-probability of each token learned."""
    own = model()
    logps = own.head.log_probs(own(batch["tokens"], own.context(batch, isolated)), batch["labels"])
    found = []
    for row in range(len(batch["tokens"])):
        numbers = batch.get("branches", batch["segments"])[row]
        for number in range(1, int(numbers.max()) + 1):
            here = numbers == number
            labels = batch["labels"][row, here]
            some = {"read": batch["tokens"][row, here].tolist(), "labels": labels[labels != IGNORE].tolist()}
            found.append({**some, "logps": logps[row, here][labels != IGNORE].tolist()})
    return found


def generated(tokenizer: HfTokenizer, answers: list[list[int]]) -> list[list[float]]:
    """Log-probability of each token of answers, as the policy that wrote them finds it."""
    asked = chat_ids(tokenizer, ASKED)
    batch = laid_out([asked] * len(answers), [Written(answer, True) for answer in answers], tokenizer.end_id)
    scored = score(model(), batch, temperature=1.0, policy=True, reference=False, rows_at_once=2)["old_logps"]
    return [row[labels != IGNORE].tolist() for row, labels in zip(scored, batch["labels"], strict=True)]


def forms(name: str) -> dict[str, tuple[RecordSpec, list[dict[str, Any]]]]:
    template = dict(zip(("source", "specials"), source_of(name), strict=True))
    good, bad = ([{"role": "assistant", "content": text}] for text in SAID[:2])
    return {
        "chat": (
            Chat(template=Jinja(**template)),
            [{"messages": [*ASKED, {"role": "assistant", "content": text}]} for text in SAID],
        ),
        "preference": (Preference(template=Jinja(**template)), [{"prompt": ASKED, "chosen": good, "rejected": bad}] * 2),
        "kto": (Kto(template=Jinja(**template)), [{"prompt": ASKED, "completion": good, "label": True}] * 2),
        "reward": (Reward(template=Jinja(**template)), [{"prompt": ASKED, "response": SAID[0], "score": 1.0}] * 2),
    }


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_token_of_an_answer_is_as_likely_as_when_the_model_is_asked(tmp_path: Path, name: str) -> None:
    tokenizer = equipped(name)
    asked = chat_ids(tokenizer, ASKED)
    assert asked == theirs(name, tokenizer, ASKED, True)
    whole = [theirs(name, tokenizer, [*ASKED, {"role": "assistant", "content": text}], False) for text in SAID]
    seen = 0
    for kind, (spec, records) in forms(name).items():
        packs: list[PackSpec] = [Document()]
        packs += [BestFit(), Grouped(multiple=1), Concat()] if kind == "chat" else []
        for pack in packs:
            folder = tmp_path / f"{kind} {type(pack).__name__}"
            folder.mkdir()
            rows = rows_of(folder, spec, records, pack, tokenizer)
            batches = [(rows.read(np.arange(len(rows))), rows.isolated)]
            if kind == "preference":
                batches.append((branched(batches[0][0], T, tokenizer.end_id), True))
            if kind == "kto":
                other = MismatchedRows(rows).read(np.arange(len(rows)))
                batches.append(({name: other[f"other_{name}"] for name in ("tokens", "labels", "positions", "segments")}, False))
            for batch, isolated in batches:
                found = [one for one in learned(batch, isolated) if one["labels"]]
                again = generated(tokenizer, [one["labels"] for one in found])
                for one, logps in zip(found, again, strict=True):
                    if isinstance(pack, Concat) and one["read"][: len(asked)] != asked:
                        continue  # it goes on from the row before
                    read = one["read"] if "branches" not in batch else [*asked, *one["labels"]]
                    assert any(read == some[: len(read)] for some in whole), f"{kind}, {pack}"
                    assert one["logps"] == pytest.approx(logps, rel=1e-12), f"{kind}, {pack}"
                    seen += 1
    assert seen >= 3 * 4 - 2 + 4 + 2 * 2 + 2


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_of_reinforcement_learning_and_what_a_reward_model_reads(tmp_path: Path, name: str) -> None:
    tokenizer, spec = equipped(name), Prompts(template=forms(name)["chat"][0].template)
    rows = rows_of(tmp_path, spec, [{"prompt": ASKED, "answer": "5"}], Document(), tokenizer)
    assert isinstance(rows, PromptRows)
    assert rows.prompt(0).tokens == chat_ids(tokenizer, ASKED)
    (tmp_path / "reward").mkdir()
    kind, records = forms(name)["reward"]
    judged = rows_of(tmp_path / "reward", kind, records, Document(), tokenizer)
    assert isinstance(judged, RecordRows)
    batch = judged.read(np.array([0]))
    (answer,) = (one["labels"] for one in learned(batch, False))
    own = batch["tokens"][batch["segments"] > 0].tolist()
    assert own == [*rows.prompt(0).tokens, *(answer[:-1] if answer[-1] == tokenizer.end_id else answer)]
