"""What prompt, p_tuning, prefix, p_tuning_v2 and adapter promise on every kind of model: documents of a packed row are as by
themselves, decoding equals a full forward, switched off they are the base, and training lowers the loss while the base stays."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmfactory.config.compose import compose_job
from llmfactory.core.batch import IGNORE
from llmfactory.core.context import CausalMask, Context, FullMask, Source
from llmfactory.core.errors import UserError
from llmfactory.inference.beam import beam_search
from llmfactory.inference.decoding import Decoding
from llmfactory.inference.generate import generate
from llmfactory.inference.sampler import GREEDY
from llmfactory.model.declarations import declarations
from llmfactory.model.initialize import initialize
from llmfactory.model.skeleton import Skeleton
from llmfactory.peft.active import without_adapters
from llmfactory.peft.adapter_spec import Placement
from llmfactory.peft.prompt_spec import PromptEncoder
from llmfactory.peft.spec import Adapter, AdapterSpec, Prefix, Prompt, PTuning, PTuningV2

METHODS: dict[str, AdapterSpec] = {
    "prompt": Prompt(tokens=3),
    "p_tuning": PTuning(tokens=3, hidden=6),
    "p_tuning_lstm": PTuning(tokens=2, encoder=PromptEncoder.lstm, hidden=5),
    "prefix": Prefix(tokens=3, hidden=7),
    "p_tuning_v2": PTuningV2(tokens=2),
    "both_sides": PTuningV2(tokens=2, encoder=True, cross=True),
    "made_both_sides": Prefix(tokens=2, hidden=5, encoder=True, cross=True),
    **{place.name: Adapter(width=6, placement=place) for place in Placement},
}
IN_LAYERS, SIDES = {"prefix", "p_tuning_v2"}, {"both_sides", "made_both_sides"}
MODELS = {
    **dict.fromkeys(("llama_tiny", "gpt2_tiny", "mixtral_8x7b", "deepseek_v2_lite", "bloom_560m", "mistral_7b"), "decoder"),
    **dict.fromkeys(("lstm_tiny", "mamba_tiny"), "recurrent"),
    **dict.fromkeys(("bert_base", "albert_base"), "encoder"),
    **dict.fromkeys(("t5_small", "bart_base"), "encoder_decoder"),
    "xlnet_base": "two_stream",
}
FEW = ("prompt", "prefix", "p_tuning_v2", "houlsby")
WITH_ALL = {"llama_tiny", "t5_small"}
"""The other models differ in what a few methods meet."""
CASES = [
    (model, method)
    for model, graph in MODELS.items()
    for method in (METHODS if model in WITH_ALL else FEW)
    if not (graph in ("recurrent", "two_stream") and method in IN_LAYERS) and not (graph != "encoder_decoder" and method in SIDES)
]
CASES = [case for case in CASES if case[0] != "deepseek_v2_lite" or case[1] in IN_LAYERS]
WRITERS = [(model, method) for model, method in CASES if MODELS[model] not in ("encoder", "two_stream")]


@functools.cache
def spec_of(preset: str) -> Any:
    return compose_job([f"model={preset}", "toy=true", "stage=describe"]).job.model


def make(preset: str, method: str, scale: float = 4) -> Skeleton:
    """In small, in float64, with weights so large that nothing hides."""
    model: Skeleton = spec_of(preset).build()
    METHODS[method].apply(model)
    model.double()
    initialize(model, 3, lambda parameter, full: parameter.copy_(full * scale if full.dim() > 1 else full))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".adapters." in f".{name}":
                weight.add_(
                    0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)), dtype=weight.dtype)
                )
    return model.eval()


def batch_of(lengths: list[list[int]], width: int, sourced: bool) -> dict[str, torch.Tensor]:
    """Rows of documents of these lengths; the documents are numbered over all rows, and their tokens follow from the number."""
    fields = {name: torch.zeros(len(lengths), width, dtype=torch.long) for name in ("tokens", "positions", "segments")}
    if sourced:
        fields |= {
            f"source{name}": torch.zeros(len(lengths), width, dtype=torch.long) for name in ("", "_positions", "_segments")
        }
    number = 0
    for row, sizes in enumerate(lengths):
        column = 0
        for document, size in enumerate(sizes, start=1):
            here = slice(column, column + size)
            for side in ("tokens", "source") if sourced else ("tokens",):
                values = 3 + (torch.arange(size) ** 2 * 7 + 13 * number + len(side)) % 50
                of = "source_" if side == "source" else ""
                fields[side][row, here] = values
                fields[f"{of}positions"][row, here] = torch.arange(size)
                fields[f"{of}segments"][row, here] = document
            column, number = column + size, number + 1
    return fields


@torch.no_grad()
@pytest.mark.parametrize(("preset", "method"), CASES)
def test_documents_of_a_packed_row_are_as_by_themselves(preset: str, method: str) -> None:
    model, sourced = make(preset, method), MODELS[preset] == "encoder_decoder"
    packed, alone = [[4, 1, 6], [5, 3], [2]], [[4], [1], [6], [5], [3], [2]]
    if preset == "xlnet_base":  # whose distances are those in the row
        packed = [[4], [6]]
        alone = packed
    hidden = []
    for lengths, width in ((packed, 12), (alone, 7)):
        batch = batch_of(lengths, width, sourced)
        found = model(batch["tokens"], model.context(batch))
        assert found.shape[:2] == (len(lengths), width)
        hidden.append(found[batch["segments"] > 0])
    torch.testing.assert_close(hidden[0], hidden[1], rtol=0, atol=1e-9 * float(hidden[1].abs().max()))
    with without_adapters(model):
        base = spec_of(preset).build().double()
        base.load_state_dict({name: weight for name, weight in model.state_dict().items() if name not in model.added})
        torch.testing.assert_close(
            model(batch["tokens"], model.context(batch)), base.eval()(batch["tokens"], base.context(batch))
        )
    off = model(batch["tokens"], model.context(batch)) - base(batch["tokens"], base.context(batch))
    assert off.abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("preset", "method"), WRITERS)
def test_each_step_of_a_decoding_equals_a_full_forward(preset: str, method: str) -> None:
    """Rows of different lengths, some of which are dropped or doubled on the way."""
    model, prompts = make(preset, method), [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4]]
    rows: list[tuple[list[int], list[int]]] = [(prompt, []) for prompt in prompts]
    decoding = Decoding(model, prompts, 4, start_id=0)
    logits = decoding.start()
    for step in range(3):
        want = torch.cat([full(model, prompt, new) for prompt, new in rows])
        torch.testing.assert_close(logits, want, rtol=0, atol=1e-9 * float(want.abs().max()))
        if step == 1:
            decoding.keep([2, 0, 2])
            rows = [(rows[number][0], list(rows[number][1])) for number in (2, 0, 2)]
        tokens = [(7 * step + 3 * number + 11) % 40 for number in range(len(rows))]
        for (_, new), token in zip(rows, tokens, strict=True):
            new.append(token)
        logits = decoding.step(tokens)


def full(model: Skeleton, prompt: list[int], new: list[int]) -> torch.Tensor:
    """Logits behind a prompt and what was written so far, without a state."""
    tokens, source = prompt + new, None
    if model.spec.graph == "encoder_decoder":
        tokens, source = (
            [0, *new],
            Source(torch.tensor([prompt]), Context(torch.arange(len(prompt))[None], FullMask()), FullMask()),
        )
    context = Context(torch.arange(len(tokens))[None], CausalMask(len(tokens)), source=source)
    found: torch.Tensor = model.head(model(torch.tensor([tokens]), context)[:, -1])
    return found


def test_beams_and_single_rows_agree() -> None:
    """A beam is a row of the cache, which holds what stands ahead."""
    model = make("llama_tiny", "prefix")
    assert beam_search(model, [[5, 6, 7]], beams=1, max_tokens=5) == generate(model, [[5, 6, 7]], max_tokens=5, sampling=GREEDY)


def test_positions_that_are_learned_have_to_be_there() -> None:
    model = make("gpt2_tiny", "prompt")
    room = model.spec.max_positions - 3
    generate(model, [[1] * (room - 2)], max_tokens=3, sampling=GREEDY)
    with pytest.raises(UserError, match="learned positions"):
        generate(model, [[1] * (room - 2)], max_tokens=4, sampling=GREEDY)


@pytest.mark.parametrize(("preset", "method"), [(preset, method) for preset, method in CASES if preset in WITH_ALL])
def test_training_lowers_the_loss_and_leaves_the_base_alone(preset: str, method: str) -> None:
    torch.manual_seed(0)
    model = make(preset, method, scale=1).train()
    batch = batch_of([[6, 5], [7]], 12, preset == "t5_small")
    labels = batch["tokens"].roll(-1, 1).where(batch["segments"] > 0, IGNORE)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained.keys() == model.added
    assert model.borrowed == dict(model.named_parameters()).keys() - trained.keys()
    assert trained.keys() <= declarations(model).keys()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer, losses = torch.optim.Adam(trained.values(), 0.03), []
    for _ in range(15):
        hidden = model(batch["tokens"], model.context(batch))
        loss = F.cross_entropy(model.head(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        loss.backward()
        assert all(weight.grad is None for name, weight in model.named_parameters() if name not in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.002, losses  # random weights make little of what a prompt says
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) is (name not in trained), name


@pytest.mark.parametrize("method", METHODS)
def test_parameters_may_be_trained_beside(method: str) -> None:
    model = spec_of("t5_small").build()
    dataclasses.replace(METHODS[method], train=["encoder.norm"]).apply(model)
    own = {name for name, weight in model.named_parameters() if weight.requires_grad} - model.added
    assert own == {"encoder.norm.weight"}
    assert not own & model.borrowed
