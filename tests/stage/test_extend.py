"""stage=extend, end to end at tiny size: a model of English learns Chinese, first in its tables, then as a whole."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_published import hf_folder, llama
from toy_job import Sender, prepared, toy_job, train, weights

from llmfactory.checkpoint import io
from llmfactory.checkpoint.names.published import open_published
from llmfactory.config.initial import saved_config
from llmfactory.config.plain import from_plain, to_plain
from llmfactory.config.spec import Job
from llmfactory.core.beginning import Beginning
from llmfactory.core.context import CausalMask, Context
from llmfactory.core.errors import UserError
from llmfactory.core.sharding import Layout
from llmfactory.data.source.spec import Files
from llmfactory.data.tokenizer.any_file import read_any
from llmfactory.data.tokenizer.extended import pieces_of
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import ByteBpe, Bytes, Extended
from llmfactory.data.tokenizer.tokenizer import load
from llmfactory.model.declarations import declarations
from llmfactory.model.head.spec import Lm
from llmfactory.objective.spec import Masked
from llmfactory.run.plain_file import write_yaml
from llmfactory.stage.initial import data_for, fill, tokenizer_of
from llmfactory.stage.spec import Extend, Pretrain

CHINESE = [
    "数学",
    "研究",
    "数量",
    "结构",
    "空间",
    "概念",
    "学科",
    "北京",
    "大学",
    "中国",
    "首都",
    "人民",
    "共和国",
    "学生",
    "老师",
    "城市",
    "历史",
    "文化",
    "语言",
    "文学",
    "科学",
    "技术",
]


def chinese(folder: Path) -> list[str]:
    path = folder / "chinese.txt"
    lines = [
        "".join(CHINESE[(number * 7 + k * k * 3 + number * k) % len(CHINESE)] for k in range(4 + number % 9))
        for number in range(90)
    ]
    path.write_text("\n---\n".join(lines) + "\n", encoding="utf-8")
    return [str(path)]


def extended(job: Job, folder: Path, init: Path, begin: Beginning = Beginning.mean_of_pieces, new_tokens: int = 40) -> Job:
    """What extends the model of a run or published folder by the Chinese text."""
    data = replace(
        job.data, source=Files(files=chinese(folder), split_on="---"), tokenizer=Extended(new_tokens=new_tokens), held_out=0.2
    )
    return replace(job, data=data, init=str(init), stage=Extend(path=str(folder / "more"), begin=begin))


def run(job: Job) -> dict[str, Any]:
    return job.stage.build().run(job, None)


def going_on(job: Job, folder: Path, **changes: Any) -> Job:
    """The job that trains what was written."""
    saved = from_plain({**saved_config(folder / "more"), "stage": to_plain(job)["stage"]})
    made = replace(job, model=saved.model, data=saved.data, init=str(folder / "more"), **changes)
    return replace(made, data=data_for(made.data, io.find(folder / "more")))


@pytest.fixture(params=["bytes_tied", "byte_bpe_untied"])
def english(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    """A job whose run folder is `english`."""
    tied = request.param == "bytes_tied"
    tokenizer = Bytes() if tied else ByteBpe(vocab_size=290)
    job = toy_job(tmp_path, model__head=Lm(tied=tied), model__vocab_size=257 if tied else 300, data__tokenizer=tokenizer)
    train(job, tmp_path / "english")
    write_yaml(tmp_path / "english" / "config.yaml", to_plain(job))
    return job


def tables(model: Any) -> list[str]:
    return [name for name, one in declarations(model).items() if one.layout is Layout.vocab]


def test_chinese_for_a_model_of_english(english: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(extended(english, tmp_path, tmp_path / "english"))
    old, new = read_any(tmp_path / "english"), read_any(tmp_path / "more")
    shown = result["bytes_per_token"]["corpus"]
    assert shown["after"] > 1.5 * shown["before"] > 0
    assert 0 < result["new_tokens"] == new.vocab_size - old.vocab_size <= 40
    assert result["vocab_size"] == max(english.model.vocab_size, new.vocab_size)
    assert result["tables"][0][1][1][0] == "corpus"
    assert "bytes per token before" in capsys.readouterr().out
    assert new.encode("the model reads a few words") == old.encode("the model reads a few words")
    with pytest.raises(UserError, match="is there already"):
        run(extended(english, tmp_path, tmp_path / "english"))

    further = going_on(english, tmp_path)
    assert further.model.vocab_size == result["vocab_size"]
    fitted, tracker = train(further, tmp_path / "further")
    assert tracker.rows[8]["loss"] < tracker.rows[1]["loss"] - 0.5
    assert read_any(tmp_path / "further").encode("北京大学") == new.encode("北京大学")
    assert fitted.model.spec.vocab_size == result["vocab_size"]


def test_old_text_means_the_same_to_the_new_model(english: Job, tmp_path: Path) -> None:
    """The same hidden vectors, and the same logits of old tokens."""
    run(extended(english, tmp_path, tmp_path / "english"))
    old, new = english.model.build(), going_on(english, tmp_path).model.build()
    fill(old, io.find(tmp_path / "english"))
    fill(new, io.find(tmp_path / "more"))
    kept = read_any(tmp_path / "english").vocab_size
    tokens = torch.tensor([read_any(tmp_path / "english").encode("the model reads a few words")])
    context = Context(torch.arange(tokens.shape[1]).expand(tokens.shape), CausalMask(tokens.shape[1]))
    with torch.no_grad():
        hidden = old.eval()(tokens, context)
        assert torch.equal(new.eval()(tokens, context), hidden)
        torch.testing.assert_close(new.head(hidden)[..., :kept], old.head(hidden)[..., :kept])


@pytest.mark.parametrize("begin", Beginning)
def test_new_rows_begin_as_they_were_told(english: Job, tmp_path: Path, begin: Beginning) -> None:
    run(extended(english, tmp_path, tmp_path / "english", begin))
    old_tokenizer, new_tokenizer = read_any(tmp_path / "english"), read_any(tmp_path / "more")
    old, new = english.model.build(), going_on(english, tmp_path).model.build()
    fill(old, io.find(tmp_path / "english"))
    fill(new, io.find(tmp_path / "more"))
    kept = old_tokenizer.vocab_size
    assert tables(new) == (["embedding.weight"] if english.model.head.tied else ["embedding.weight", "head.weight"])
    for name in tables(new):
        before, after = (dict(model.named_parameters())[name].detach() for model in (old, new))
        assert torch.equal(after[:kept], before[:kept])
        for number in range(kept, new_tokenizer.vocab_size):
            if begin is Beginning.mean_of_pieces:
                token = new_tokenizer.inner.id_to_token(number)
                text = new_tokenizer.inner.decoder.decode([token])
                spelled = pieces_of(old_tokenizer, new_tokenizer)[number]
                if "\ufffd" not in text:
                    assert spelled == old_tokenizer.encode(text)
                torch.testing.assert_close(after[number], torch.stack([before[old_id] for old_id in spelled]).mean(0))
            elif begin is Beginning.mean:
                torch.testing.assert_close(after[number], before[:kept].mean(0))
        if begin is Beginning.random:
            spread = after[kept : new_tokenizer.vocab_size].std().item()
            assert spread == pytest.approx(english.model.init_std, rel=0.3)
    others = set(dict(new.named_parameters())) - set(tables(new))
    assert all(torch.equal(old.get_parameter(name), new.get_parameter(name)) for name in others)


def test_the_first_phase_moves_the_tables_only(english: Job, tmp_path: Path) -> None:
    run(extended(english, tmp_path, tmp_path / "english"))
    stage = Pretrain(objective=english.stage.objective, embeddings_only_steps=4)  # type: ignore[attr-defined]
    job = going_on(english, tmp_path, stage=stage)
    before = job.model.build()
    fill(before, io.find(tmp_path / "more"))
    whole, whole_curve = train(job, tmp_path / "whole")
    state = io.read_state(tmp_path / "whole" / "checkpoints" / "step_00000004")["tensors"]
    middle = job.model.build()
    io.load_weights(tmp_path / "whole" / "checkpoints" / "step_00000004", middle)
    for name, weight in middle.named_parameters():
        moved = not torch.equal(weight, before.get_parameter(name))
        assert moved is (name in tables(middle)), name
        assert (f"optimizer.{name}.exp_avg" in state) is moved, "what rests has no state, and weight decay does not move it"
    end = weights(whole)
    assert all(not torch.equal(end[name], weight) for name, weight in middle.named_parameters())
    _, others = train(replace(job, stage=replace(stage, embeddings_only_steps=0)), tmp_path / "other")
    assert others.rows[2]["loss"] != whole_curve.rows[2]["loss"]


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_resumed_run_knows_its_phase(english: Job, tmp_path: Path, stop: int) -> None:
    run(extended(english, tmp_path, tmp_path / "english"))
    stage = Pretrain(objective=english.stage.objective, embeddings_only_steps=4)  # type: ignore[attr-defined]
    job = going_on(english, tmp_path, stage=stage)
    unbroken, reference = train(job, tmp_path / "unbroken")
    first, tracker = train(job, tmp_path / "broken", Sender(stop))
    assert first.step == stop
    resumed, _ = train(job, tmp_path / "broken", tracker)
    assert tracker.curve() == reference.curve()
    one, other = weights(unbroken), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tied", [True, False])
def test_a_published_model(tmp_path: Path, tied: bool) -> None:
    """With more rows than tokens: new tokens take free rows first."""
    folder = hf_folder(tmp_path / "published", llama(tie_word_embeddings=tied))
    published = open_published(folder)
    job = replace(toy_job(tmp_path), model=published.spec)
    result = run(extended(job, tmp_path, folder, new_tokens=50))
    old, new = read_any(folder), load(tmp_path / "more" / "tokenizer")
    assert isinstance(new, HfTokenizer)
    assert published.spec.vocab_size == 320 > old.vocab_size
    assert result["vocab_size"] == max(320, new.vocab_size)
    assert new.usage == old.usage
    model = going_on(job, tmp_path).model.build()
    fill(model, io.find(tmp_path / "more"))
    theirs = llama(tie_word_embeddings=tied)
    table = dict(model.named_parameters())["embedding.weight"]
    assert torch.equal(table[: old.vocab_size], theirs.model.embed_tokens.weight[: old.vocab_size])
    spelled = pieces_of(old, new)[old.vocab_size]
    torch.testing.assert_close(table[old.vocab_size], theirs.model.embed_tokens.weight[spelled].mean(0))
    assert tokenizer_of(io.find(tmp_path / "more")).build(400).make(()).vocab_size == new.vocab_size


def test_tokens_of_an_objective_that_the_tokenizer_lacks_are_in_the_way(english: Job, tmp_path: Path) -> None:
    write_yaml(
        tmp_path / "english" / "checkpoints" / "step_00000008" / "config.yaml",
        to_plain(replace(english, stage=Pretrain(objective=Masked()))),
    )
    with pytest.raises(UserError, match="trained with 1 special tokens that its tokenizer lacks"):
        run(extended(english, tmp_path, tmp_path / "english"))


def test_the_text_is_prepared_with_the_extended_tokenizer(english: Job, tmp_path: Path) -> None:
    run(extended(english, tmp_path, tmp_path / "english"))
    job = going_on(english, tmp_path)
    assert prepared(job).tokenizer.vocab_size == read_any(tmp_path / "more").vocab_size
