"""Small models of both families for the tests of the parts and of the whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.decoder_only import Decoder
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Glu, Mlp
from llmfactory.model.frame import Frame, Site
from llmfactory.model.head.spec import Lm
from llmfactory.model.initialize import initialize
from llmfactory.model.norm.spec import LayerNorm, RmsNorm
from llmfactory.model.position.spec import Learned, PositionSpec, Rope
from llmfactory.model.position.spec import None_ as NoPosition
from llmfactory.model.spec import DecoderOnly


def gpt_spec(**changes: object) -> DecoderOnly:
    """GPT-2 in small."""
    fields: dict[str, object] = {
        "vocab_size": 97,
        "dim": 24,
        "max_positions": 48,
        "n_layers": 3,
        "norm": LayerNorm(),
        "position": Learned(),
        "attention": Gqa(n_heads=4, bias=True),
        "ffn": Mlp(hidden=96, activation=Activation.gelu_tanh),
        "block": PreNorm(),
        "embedding": Token(),
        "head": Lm(tied=True),
    }
    return DecoderOnly(**{**fields, **changes})


def llama_spec(**changes: object) -> DecoderOnly:
    """LLaMA in small, with shared key/value heads."""
    fields: dict[str, object] = {
        "vocab_size": 97,
        "dim": 24,
        "max_positions": 48,
        "n_layers": 3,
        "norm": RmsNorm(),
        "position": Rope(),
        "attention": Gqa(n_heads=6, n_kv_heads=2),
        "ffn": Glu(hidden=64, activation=Activation.silu),
        "block": PreNorm(),
        "embedding": Token(),
        "head": Lm(tied=False),
    }
    return DecoderOnly(**{**fields, **changes})


def frame_with(**changes: object) -> Frame:
    """What a small stack tells its parts."""
    fields: dict[str, object] = {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "head_dim": 4,
        "max_positions": 64,
        "std": 0.02,
        "out_std": 0.005,
        "causal": True,
        "norm": LayerNorm().build,
    }
    return Frame(**{**fields, **changes})


@pytest.fixture
def frame() -> Callable[..., Frame]:
    """A function that makes a small stack's frame, with changes by keyword."""
    return frame_with


@pytest.fixture
def site() -> Callable[..., Site]:
    """The same for a block of it, whose stack has no positions unless `position=` says otherwise."""

    def make(layer: int = 0, position: PositionSpec | None = None, **changes: object) -> Site:
        frame = frame_with(**changes)
        return Site(frame, layer, (position or NoPosition()).build(frame))

    return make


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[gpt_spec, llama_spec], ids=["gpt", "llama"])
def family(request: pytest.FixtureRequest) -> Callable[..., DecoderOnly]:
    """A function that makes the family's small spec, with changes by keyword."""
    return request.param


@pytest.fixture
def gpt() -> Callable[..., DecoderOnly]:
    return gpt_spec


@pytest.fixture
def llama() -> Callable[..., DecoderOnly]:
    return llama_spec


@pytest.fixture
def build() -> Callable[[DecoderOnly], Decoder]:
    """Built and initialized in float64, with weights ten times larger than usual, so that every term weighs in."""

    def make(spec: DecoderOnly, dtype: torch.dtype = torch.float64) -> Decoder:
        model = spec.build()
        initialize(model, 1, lambda parameter, full: parameter.copy_(full * 10 if full.dim() > 1 else full))
        with torch.no_grad():  # gains and biases off their neutral values
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        return model.to(dtype)

    return make
