"""Stages are slices of a model's steps: with the parameters of their own process alone, one after the other, they are the model."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmfactory.config.compose import compose_job
from llmfactory.model.initialize import initialize
from llmfactory.model.skeleton import Skeleton
from llmfactory.model.spec import Multimodal
from llmfactory.model.steps import HIDDEN, Pass, Step
from llmfactory.parallel.spec import Mesh, Schedule
from llmfactory.parallel.stages import Stages, slices

MODELS = {
    "tied": ["model=gpt2_tiny"],
    "mapped": ["model=albert_base", "stage/objective=masked"],
    "bias": ["model=t5_small", "stage/objective=span_corruption"],
    "two_sides": ["model=bart_base", "stage/objective=denoising"],
    "two_streams": ["model=xlnet_base", "stage/objective=permutation"],
    "two_axes": ["model=chatglm_6b", "stage/objective=blank_infilling"],
    "recurrent": ["model=mamba_tiny"],
    "experts": ["model=mixtral_8x7b"],
    "pictures": ["model=llava_1_5_7b"],
}
SHARED: dict[str, set[str]] = {
    "tied": {"embedding.weight"},
    "bias": {"embedding.weight"},
    "two_sides": {"embedding.weight"},
    "two_axes": {"embedding.weight"},
    "recurrent": {"embedding.weight"},
    "experts": set(),
}
"""Parameters on both processes, of two stages each cut in the middle; of models whose names say it plainly."""


def built(case: str) -> Skeleton:
    model = compose_job([*MODELS[case], "toy=true", "data.seq_len=32", "data/tokenizer=bytes"]).job.model.build()
    initialize(model, 0)
    return model.double().eval()


def stages(model: nn.Module, rank: int, layout: Mesh) -> Stages:
    """What one of two processes has."""
    group = SimpleNamespace(size=lambda: 2)
    dense = SimpleNamespace(mesh=torch.arange(2).view(2, 1))
    world: Any = SimpleNamespace(degrees={"pp": 2}, place=lambda axis: rank, groups={"pp": group}, dense=dense)
    return Stages(model, world, layout)


def batch_of(model: Skeleton) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(0)
    images: dict[str, Tensor] = {}
    tokens = torch.randint(5, 90, (2, 12), generator=numbers)
    if isinstance(model.spec, Multimodal):
        tokens = torch.randint(5, 90, (2, model.spec.vectors_per_image + 4), generator=numbers)
        tokens[:, 2:-2] = model.spec.image_token
        side = model.spec.vision.embedding.image_size
        images["images"] = torch.randn(2, 1, 3, side, side, generator=numbers, dtype=torch.float64)
    places, ones = torch.arange(tokens.shape[1]).expand(2, -1), torch.ones_like(tokens)
    source = {"source": tokens.flip(1), "source_positions": places, "source_segments": ones}
    order = {"order": places.flip(1)} if model.spec.graph == "two_stream" else {}
    return {"tokens": tokens, "positions": places, "segments": ones, **source, **order, **images}


@pytest.mark.parametrize("case", MODELS)
def test_two_processes_are_the_model(case: str) -> None:
    model = built(case)
    batch = batch_of(model)
    layout = Mesh(pp=2, schedule=Schedule.gpipe)
    carried: dict[str, Tensor] = {}
    owned = []
    with torch.no_grad():
        want = model.head(model(batch["tokens"], model.context(batch)))
        for rank in range(2):
            own = copy.deepcopy(model)
            part = stages(own, rank, layout)
            part.drop()
            going = Pass(batch["tokens"], own.context(batch), dict(carried))
            for step in own.steps()[part.slices[rank]]:
                step.run(going)
            carried = going.carried
            owned.append({name for name, _ in own.named_parameters()})
            assert {name for name, owners in part.owners.items() if rank in owners} == owned[-1]
            counted = [name for name in part.owners if part.counted(name)]
            assert counted == [name for name in part.owners if min(part.owners[name]) == rank]
        torch.testing.assert_close(own.head(carried[HIDDEN]), want, rtol=1e-12, atol=1e-12)
    assert carried.keys() - {"memory"} == {HIDDEN}
    assert owned[0] | owned[1] == {name for name, _ in model.named_parameters()}
    if case in SHARED:
        assert owned[0] & owned[1] == SHARED[case]


def test_blocks_and_a_bias_on_every_stage() -> None:
    """ALBERT's one block; T5's bias of each side, once that side is cut."""
    albert = stages(built("mapped"), 0, Mesh(pp=2)).owners
    assert albert["blocks.0.attention.q.weight"] == (0, 1)
    t5 = stages(built("bias"), 0, Mesh(pp=2, schedule=Schedule.zero_bubble_v)).owners  # encoder 0, 1; decoder 1, 0
    assert t5["encoder.position.weight"] == (0, 1)
    assert t5["encoder.blocks.0.attention.q.weight"] == (0,)
    assert t5["encoder.blocks.1.attention.q.weight"] == (1,)


@pytest.mark.parametrize(
    ("layout", "homes"),
    [
        (Mesh(pp=2), [0, 0, 1, 1]),
        (Mesh(pp=2, schedule=Schedule.interleaved), [0, 1, 0, 1]),
        (Mesh(pp=2, schedule=Schedule.interleaved, virtual_stages=1), [0, 0, 1, 1]),
        (Mesh(pp=2, schedule=Schedule.zero_bubble), [0, 1, 0, 1]),
        (Mesh(pp=2, schedule=Schedule.zero_bubble_v), [0, 1, 1, 0]),
    ],
)
def test_where_layers_lie_follows_from_the_schedule(layout: Mesh, homes: list[int]) -> None:
    owners = stages(built("bias"), 0, layout).owners
    blocks = [f"{side}.blocks.{number}.attention.q.weight" for side in ("encoder", "decoder") for number in range(2)]
    assert [owners[block] for block in blocks] == [(home,) for home in homes]


def test_what_no_step_uses_stays_with_the_last() -> None:
    model = built("tied")
    model.spare = nn.Parameter(torch.zeros(1))
    assert stages(model, 0, Mesh(pp=2)).owners["spare"] == (1,)


def test_layers_are_dealt_evenly() -> None:
    def cut(text: str, n: int) -> list[str]:
        steps = [Step((), lambda going: None, layer=kind == "L") for kind in text]
        return [text[part] for part in slices(steps, n)]

    assert cut("eLLLLn", 2) == ["eLL", "LLn"]
    assert cut("eLLLLLn", 3) == ["eL", "LL", "LLn"]
    assert cut("eLLneLLn", 2) == ["eLL", "neLLn"]
    with pytest.raises(ValueError, match="2 layers cannot be dealt to 3"):
        cut("eLLn", 3)
