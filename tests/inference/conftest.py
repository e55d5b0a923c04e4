"""A small model of each family, in float64, with weights so large that its distributions are far from flat."""

from __future__ import annotations

import pytest
import torch

from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Glu, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import LayerNorm, RmsNorm
from llmfactory.model.position.spec import Learned, None_, Rope
from llmfactory.model.spec import DecoderOnly

PARTS = {
    "learned": {
        "norm": LayerNorm(),
        "position": Learned(),
        "attention": Gqa(n_heads=4, bias=True),
        "ffn": Mlp(hidden=64, activation=Activation.gelu_tanh),
        "head": Lm(tied=True),
    },
    "rope": {
        "norm": RmsNorm(),
        "position": Rope(),
        "attention": Gqa(n_heads=4, n_kv_heads=2),
        "ffn": Glu(hidden=64, activation=Activation.silu),
        "head": Lm(tied=False),
    },
}
PARTS["none"] = {**PARTS["rope"], "position": None_()}


@pytest.fixture(params=PARTS)
def model(request: pytest.FixtureRequest):
    spec = DecoderOnly(
        vocab_size=61, dim=32, n_layers=3, max_positions=40, block=PreNorm(), embedding=Token(), **PARTS[request.param]
    )
    built = spec.build().double()
    initialize(built, 3, lambda parameter, full: parameter.copy_(full * 15 if full.dim() > 1 else full))
    return built.eval()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
