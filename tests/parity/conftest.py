"""A family of `transformers` with tiny random weights beside our model with the same weights, through a table of names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from llmfactory.model.attention.spec import Gqa
from llmfactory.model.block.spec import PreNorm
from llmfactory.model.decoder_only import Decoder
from llmfactory.model.embedding.spec import Token
from llmfactory.model.ffn.spec import Activation, Glu, Mlp
from llmfactory.model.head.spec import Lm
from llmfactory.model.norm.spec import LayerNorm, RmsNorm
from llmfactory.model.position.spec import Learned, Rope
from llmfactory.model.spec import DecoderOnly

SIZES = {"vocab_size": 103, "dim": 48, "n_layers": 3, "max_positions": 64, "block": PreNorm(), "embedding": Token()}


def gpt2() -> tuple[DecoderOnly, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    spec = DecoderOnly(
        **SIZES,
        norm=LayerNorm(),
        position=Learned(),
        attention=Gqa(n_heads=4, bias=True),
        ffn=Mlp(hidden=192, activation=Activation.gelu_tanh),
        head=Lm(tied=True),
    )
    config = GPT2Config(
        vocab_size=103,
        n_embd=48,
        n_layer=3,
        n_head=4,
        n_positions=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return spec, GPT2LMHeadModel(config)


def gpt2_name(name: str) -> tuple[str, int | None, bool]:
    """Our name -> their name, which third of a fused matrix, whether the matrix is stored transposed (their Conv1D)."""
    parts = {
        "embedding": "wte",
        "position": "wpe",
        "norm": "ln_f",
        "attention_norm": "ln_1",
        "ffn_norm": "ln_2",
        "attention.q": "attn.c_attn",
        "attention.k": "attn.c_attn",
        "attention.v": "attn.c_attn",
        "attention.o": "attn.c_proj",
        "ffn.up": "mlp.c_fc",
        "ffn.down": "mlp.c_proj",
    }
    module, kind = name.rsplit(".", 1)
    prefix = "transformer."
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        prefix += f"h.{layer}."
    third = "qkv".index(module[-1]) if module in ("attention.q", "attention.k", "attention.v") else None
    conv = kind == "weight" and module.startswith(("attention.", "ffn."))
    return f"{prefix}{parts[module]}.{kind}", third, conv


def llama(tied: bool) -> tuple[DecoderOnly, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    spec = DecoderOnly(
        **SIZES,
        norm=RmsNorm(eps=1e-6),
        position=Rope(theta=500.0),
        attention=Gqa(n_heads=6, n_kv_heads=2),
        ffn=Glu(hidden=80, activation=Activation.silu),
        head=Lm(tied=tied),
    )
    config = LlamaConfig(
        vocab_size=103,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=80,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return spec, LlamaForCausalLM(config)


def llama_name(name: str) -> tuple[str, int | None, bool]:
    parts = {
        "embedding": "model.embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn.gate": "mlp.gate_proj",
        "ffn.up": "mlp.up_proj",
        "ffn.down": "mlp.down_proj",
        **{f"attention.{ours}": f"self_attn.{ours}_proj" for ours in "qkvo"},
    }
    module, kind = name.rsplit(".", 1)
    prefix = ""
    if module.startswith("blocks."):
        _, layer, module = module.split(".", 2)
        prefix = f"model.layers.{layer}."
    return f"{prefix}{parts[module]}.{kind}", None, False


@dataclass
class Pair:
    ours: Decoder
    theirs: Any
    name: Any

    def to_ours(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Their tensors (weights or gradients) under our names and in our shapes."""
        found = {}
        for name, _ in self.ours.named_parameters():
            theirs, third, transposed = self.name(name)
            tensor = tensors[theirs]
            if third is not None:
                tensor = tensor.chunk(3, -1)[third]
            found[name] = tensor.T if transposed else tensor
        return found


FAMILIES = {
    "gpt2": lambda: (*gpt2(), gpt2_name),
    "llama": lambda: (*llama(tied=False), llama_name),
    "llama_tied": lambda: (*llama(tied=True), llama_name),
}


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    spec, theirs, name = FAMILIES[request.param]()
    with torch.no_grad():
        for parameter in theirs.parameters():  # far from the neutral values, so that no term hides
            parameter.add_(0.1 * torch.randn_like(parameter))
    pair = Pair(spec.build(), theirs.eval(), name)
    pair.ours.load_state_dict(pair.to_ours(dict(theirs.named_parameters())))
    assert sum(p.numel() for p in pair.ours.parameters()) == theirs.num_parameters()
    return pair
