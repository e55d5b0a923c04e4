"""A model of `transformers` with random weights beside ours with the same weights, through the family's own table."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_decoders import DECODERS

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Family
from llmfactory.checkpoint.names.translate import check_names, to_ours, to_theirs
from llmfactory.model.skeleton import Skeleton


@dataclass
class Pair:
    """The same model twice."""

    ours: Skeleton
    theirs: Any
    family: Family

    def to_ours(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Their tensors (weights or gradients), as they hold them, under our names and in our shapes."""
        return dict(to_ours(self.family.entries(self.ours.spec), as_in_files(self.theirs, tensors).__getitem__))

    def to_theirs(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(to_theirs(self.family.entries(self.ours.spec), tensors))


def as_in_files(theirs: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names that its files have: in memory some families hold several tensors in one (experts)."""
    from transformers.core_model_loading import revert_weight_conversion

    with torch.no_grad():
        return dict(revert_weight_conversion(theirs, dict(tensors)))


def pair_of(theirs: Any, seed: int = 0) -> Pair:
    """Ours from their config and weights, which are moved far from their neutral values first, so that no term hides."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = theirs.config.to_dict()
    config["architectures"] = [type(theirs).__name__]
    family = family_of(config)
    spec = family.spec(config)
    tensors = as_in_files(theirs, dict(theirs.named_parameters()))
    check_names(family, spec, tensors)
    pair = Pair(spec.build(), theirs.eval(), family)
    with torch.no_grad():
        pair.ours.load_state_dict(pair.to_ours(dict(theirs.named_parameters())))
    pair.ours.eval()
    assert sum(p.numel() for p in pair.ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert family.spec(family.config(spec)) == spec, "config.json must say the same when it is written and read back"
    back = pair.to_theirs(dict(pair.ours.named_parameters()))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items()), "a round trip is bit for bit"
    return pair


@pytest.fixture
def make_pair() -> Any:
    """`pair_of`, for tests of one family."""
    return pair_of


SMALL = {
    "vocab_size": 103,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
"""Sizes under the names that most decoders have for them."""


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 103, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0))


def llama(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

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
    return LlamaForCausalLM(config)


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {**SMALL, "intermediate_size": 40, "num_local_experts": 6, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.03}
    return MixtralForCausalLM(MixtralConfig(**sizes, sliding_window=12, rms_norm_eps=1e-6))


def qwen2_moe() -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    experts = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3, "shared_expert_intermediate_size": 36}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SMALL, **experts, intermediate_size=80, mlp_only_layers=[1]))


CAUSAL = {
    **DECODERS,
    "gpt2": gpt2,
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
    "llama": lambda: llama(tied=False),
    "llama_tied": lambda: llama(tied=True),
}
"""Decoders of `transformers` in small, by name."""


@pytest.fixture(params=CAUSAL)
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    return pair_of(CAUSAL[request.param]())
