"""What the vectors of virtual tokens are at first, and a run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_job import filled, toy_job

from llmfactory.core.errors import UserError
from llmfactory.model.spec import DecoderOnly
from llmfactory.parallel.mesh import World
from llmfactory.peft.p_tuning import LstmTokens
from llmfactory.peft.prompt import PromptVectors, table_of
from llmfactory.peft.prompt_spec import PromptEncoder, PromptStart
from llmfactory.peft.spec import Prompt, PTuning
from llmfactory.run.fit import build_stage


def begun(folder: Path, peft: Prompt, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors, and the table."""
    job = toy_job(folder, peft=peft, seed=seed)
    stage = filled(build_stage(job, isolated=True, encode=lambda text: list(text.encode())))
    (adapter,) = (module for module in stage.model.modules() if isinstance(module, PromptVectors))
    return adapter.vectors.detach(), table_of(stage.model).weight.detach()


def test_random_numbers_are_spread_as_embeddings(tmp_path: Path) -> None:
    vectors, table = begun(tmp_path, Prompt(tokens=200))
    assert vectors.std() == pytest.approx(float(table.std()), rel=0.1)


def test_tokens_of_the_vocabulary(tmp_path: Path) -> None:
    vectors, table = begun(tmp_path, Prompt(tokens=30, start=PromptStart.vocabulary))
    ids = [int((table == vector).all(1).nonzero()[0]) for vector in vectors]
    assert len(set(ids)) > 20
    assert max(ids) > 200
    assert min(ids) < 60
    again = begun(tmp_path, Prompt(tokens=30, start=PromptStart.vocabulary))[0]
    assert torch.equal(vectors, again)
    assert not torch.equal(vectors, begun(tmp_path, Prompt(tokens=30, start=PromptStart.vocabulary), seed=1)[0])


def test_tokens_of_a_text_over_and_over(tmp_path: Path) -> None:
    vectors, table = begun(tmp_path, Prompt(tokens=8, start=PromptStart.text, text="abc"))
    assert torch.equal(vectors, table[torch.tensor(list(b"abcabcab"))])


def test_a_text_needs_tokens(tmp_path: Path) -> None:
    peft = Prompt(tokens=2, start=PromptStart.text, text="x")
    model = toy_job(tmp_path).model.build()
    peft.apply(model)
    for encode, message in ((None, "needs a tokenizer"), (lambda text: [], "no tokens"), (lambda text: [999], "no tokens")):
        with pytest.raises(UserError, match=message):
            peft.begin(model, World(torch.device("cpu")), encode)


def test_two_prompts_stand_one_behind_the_other(tmp_path: Path) -> None:
    """As one prompt of both."""
    spec = toy_job(tmp_path).model
    assert isinstance(spec, DecoderOnly)
    one, two = spec.build().eval(), spec.build().eval()
    Prompt(tokens=5).apply(one)
    Prompt(tokens=2).apply(two, "first")
    Prompt(tokens=3).apply(two, "second")
    assert (one.preceding, two.preceding) == (5, 5)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in one.parameters():
            weight.normal_()
        state = one.state_dict()
        vectors = state.pop("embedding.adapters.default.vectors")
        parts = {"embedding.adapters.first.vectors": vectors[:2], "embedding.adapters.second.vectors": vectors[2:]}
        two.load_state_dict(state | parts)
        tokens = torch.randint(0, 257, (2, 6))
        batch = {"tokens": tokens, "positions": torch.arange(6).expand(2, 6), "segments": torch.ones_like(tokens)}
        torch.testing.assert_close(two(tokens, two.context(batch)), one(tokens, one.context(batch)))


def test_an_lstm_drops_between_its_layers_in_training_only(tmp_path: Path) -> None:
    spec = PTuning(tokens=4, encoder=PromptEncoder.lstm, hidden=8, dropout=0.5)
    table = table_of(toy_job(tmp_path).model.build())
    encoder = LstmTokens(spec, "default", table)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.normal_()
    assert not torch.equal(encoder(), encoder())
    encoder.eval()
    assert torch.equal(encoder(), encoder())
