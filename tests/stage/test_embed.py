"""stage=embed: the vectors of sentence encoders, whoever shares the batch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_published import TEXT

from llmfactory.checkpoint.names.published import open_published
from llmfactory.config.spec import Job
from llmfactory.core.errors import UserError
from llmfactory.data.tokenizer.bytes import ByteTokenizer
from llmfactory.data.tokenizer.hf_file import HfTokenizer
from llmfactory.data.tokenizer.spec import ByteBpe
from llmfactory.model.head.spec import Classifier, HeadSpec, Pooler, Sentence
from llmfactory.precision.spec import Fp32
from llmfactory.stage.embed import cells, marked
from llmfactory.stage.spec import Embed

TEXTS = ["some words", "of them, more and more words", "12345"]


@pytest.fixture
def theirs(tmp_path: Path) -> Any:
    """A BERT in a folder, with a tokenizer that puts two special tokens around a text."""
    from tokenizers import processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    model = BertModel(BertConfig(vocab_size=310, max_position_embeddings=30, initializer_range=0.3, **sizes)).eval()
    model.save_pretrained(tmp_path / "bert")
    made = ByteBpe(vocab_size=300).build(300).make(TEXT)
    assert isinstance(made, HfTokenizer)
    made.inner.add_special_tokens(["[CLS]", "[SEP]"])
    pair = [(token, made.inner.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    made.inner.save(str(tmp_path / "bert" / "tokenizer.json"))
    (tmp_path / "bert" / "tokenizer_config.json").write_text(json.dumps({"sep_token": "[SEP]"}))
    return model


def run(job: Job, path: Path, texts: list[str], head: HeadSpec | None = None) -> dict[str, Any]:
    model: Any = open_published(path).spec
    stage = Embed(texts=texts)
    model = replace(model, head=head or Sentence())
    return stage.build().run(replace(job, init=str(path), model=model, stage=stage, precision=Fp32()), None)


def test_vectors_are_the_means_of_the_references(
    job: Job, theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(job, tmp_path / "bert", TEXTS)
    inner = HfTokenizer.read(tmp_path / "bert" / "tokenizer.json", 0).inner
    for text, vector in zip(TEXTS, found["vectors"], strict=True):
        ids = torch.tensor([inner.encode(text).ids])
        with torch.no_grad():
            mean = theirs(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.tensor(vector), mean / mean.norm(), rtol=0, atol=1e-5)
    alone = run(job, tmp_path / "bert", TEXTS[:1])["vectors"][0]
    assert alone == pytest.approx(found["vectors"][0], abs=1e-6), "padding changes nothing"
    cosines = torch.tensor(found["cosines"])
    assert torch.allclose(cosines.diagonal(), torch.ones(3, dtype=cosines.dtype))
    assert cosines[0, 1].item() == pytest.approx(sum(a * b for a, b in zip(*found["vectors"][:2], strict=True)), abs=1e-5)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:3] == ["1", "1.000", f"{cosines[0, 1]:.3f}"]
    assert shown[1].endswith("some words")


def test_a_pooler_of_the_checkpoint_makes_vectors_a_fresh_one_does_not(job: Job, theirs: Any, tmp_path: Path) -> None:
    found = run(job, tmp_path / "bert", TEXTS[:1], Pooler())["vectors"]
    inner = HfTokenizer.read(tmp_path / "bert" / "tokenizer.json", 0).inner
    with torch.no_grad():
        wanted = theirs(torch.tensor([inner.encode(TEXTS[0]).ids])).pooler_output
    torch.testing.assert_close(torch.tensor(found), wanted, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"has no weights for the head that makes vectors.*model/head=sentence"):
        run(job, tmp_path / "bert", TEXTS, Classifier(n_classes=4))


@pytest.mark.parametrize(
    ("texts", "said"),
    [(["a" * 40], r"text 1 of stage.texts has 42 tokens, the model was made for 30"), (["a", "a" * 40], "text 2 of stage.texts")],
)
def test_a_text_longer_than_the_positions_is_refused(job: Job, theirs: Any, tmp_path: Path, texts: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(job, tmp_path / "bert", texts)


def test_a_text_without_tokens_is_refused() -> None:
    from llmfactory.stage.embed import check

    with pytest.raises(UserError, match=r"text 2 of stage.texts has no token"):
        check([[1], []], 5)
    assert marked(ByteTokenizer(), "a") == [256, 97]


def test_a_terminal_obeys_no_text() -> None:
    (_, row) = cells(["a\x1b[2Jb\nc"], torch.ones(1, 1))
    assert row[-1] == "a\ufffd[2Jb c"
