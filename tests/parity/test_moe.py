"""The balance loss of `transformers` for Mixtral and its kin, with padding, and its gradients: float32, 1e-5 of the largest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmfactory.checkpoint.names.families import family_of
from llmfactory.checkpoint.names.family import Inexpressible
from llmfactory.core.context import Context, DocumentMask, Record
from llmfactory.core.errors import UserError
from llmfactory.model.ffn.spec import BalanceOver, Glu, MoeSpec
from llmfactory.model.position.spec import Rope
from llmfactory.model.spec import LayerSpec

SMALL = {"vocab_size": 103, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def mixtral(**changes: Any) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    experts = {"intermediate_size": 40, "num_local_experts": 6, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.03}
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SMALL, **experts, **changes))


def qwen2_moe(**changes: Any) -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    experts = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3, "shared_expert_intermediate_size": 36}
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SMALL, **experts, intermediate_size=80, **changes))


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "mscale": 0.9,
    "mscale_all_dim": 0.7,
    "original_max_position_embeddings": 16,
}


def deepseek_v2(**changes: Any) -> Any:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    sizes = {**SMALL, "num_key_value_heads": 6, "intermediate_size": 80, "moe_intermediate_size": 24, "num_hidden_layers": 3}
    widths = {"kv_lora_rank": 20, "q_lora_rank": None, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "first_k_dense_replace": 1}
    torch.manual_seed(0)
    fields = {**sizes, **widths, **experts, "routed_scaling_factor": 1.5, "rope_parameters": YARN, **changes}
    return DeepseekV2ForCausalLM(DeepseekV2Config(**fields))


DEEPSEEK = {
    "lite": {},
    "unstretched": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "queries_of_a_short_vector": {"q_lora_rank": 28, "attention_bias": True, "first_k_dense_replace": 0},
    "two_dense_layers": {"first_k_dense_replace": 2},
}


@pytest.mark.parametrize("changes", DEEPSEEK.values(), ids=list(DEEPSEEK))
def test_deepseek_logits_and_gradients(changes: dict[str, Any], make_pair: Any) -> None:
    pair = make_pair(deepseek_v2(**changes))
    tokens, real, positions = batch()
    labels = tokens.masked_fill(real == 0, -100)
    want = pair.theirs(tokens, attention_mask=real, labels=labels)
    want.loss.backward()
    context = Context(positions, DocumentMask(real), segments=real)
    logits = pair.ours.head(pair.ours(tokens, context))
    largest_logit = float(want.logits.detach().abs().max())
    torch.testing.assert_close(logits[real == 1], want.logits[real == 1], rtol=0, atol=1e-5 * largest_logit)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    gradients = pair.to_ours({name: parameter.grad for name, parameter in pair.theirs.named_parameters()})
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in pair.ours.named_parameters():
        atol = max(1e-5 * float(gradients[name].abs().max()), 1e-7 * largest)
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=atol)


def test_what_deepseek_has_and_we_have_not() -> None:
    config = deepseek_v2().config.to_dict()
    family = family_of(config)
    spec: Any = family.spec(config)
    for wrong in (
        {"topk_method": "group_limited_greedy"},
        {"norm_topk_prob": True},
        {"scoring_func": "sigmoid"},
        {"mlp_bias": True},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            family.spec({**config, **wrong})
    with pytest.raises(Inexpressible, match="no multiple"):
        family.config(dataclasses.replace(spec, ffn=dataclasses.replace(spec.ffn, shared_hidden=50)))
    with pytest.raises(Inexpressible, match="behind"):
        family.config(dataclasses.replace(spec, pattern=["base", "dense", "base"]))
    unstretched = Rope(interleaved=True)
    with pytest.raises(Inexpressible, match="not stretched"):
        family.config(dataclasses.replace(spec, position=unstretched))


def over_the_batch(pair: Any) -> None:
    """Their statistics are those of all rows at once."""
    for part in pair.ours.modules():
        if hasattr(part, "leave_losses"):
            part.over = BalanceOver.batch


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1, 103, (3, 14), generator=torch.Generator().manual_seed(1))
    real = torch.ones_like(tokens)
    real[1, 9:] = 0
    return tokens, real, torch.arange(14).expand(3, 14)


def ours_of(pair: Any, tokens: torch.Tensor, real: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    record = Record()
    context = Context(positions, DocumentMask(real), segments=real, record=record)
    logits = pair.ours.head(pair.ours(tokens, context))
    return logits, record.sums["balance"] / real.sum()


@pytest.mark.parametrize("family", [mixtral, qwen2_moe])
def test_loss_and_gradients_with_the_balance(family: Any, make_pair: Any) -> None:
    pair = make_pair(family(num_hidden_layers=1))
    over_the_batch(pair)
    tokens, real, positions = batch()
    labels = tokens.masked_fill(real == 0, -100)
    want = pair.theirs(tokens, attention_mask=real, labels=labels, output_router_logits=True)
    want.loss.backward()
    logits, balance = ours_of(pair, tokens, real, positions)
    (F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) + balance).backward()
    coefficient = pair.theirs.config.router_aux_loss_coef
    torch.testing.assert_close(balance, coefficient * want.aux_loss, rtol=1e-5, atol=0)
    gradients = pair.to_ours({name: parameter.grad for name, parameter in pair.theirs.named_parameters()})
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in pair.ours.named_parameters():
        atol = max(1e-5 * float(gradients[name].abs().max()), 1e-7 * largest)
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=atol)


def test_several_layers_are_summed_each_with_its_share(make_pair: Any) -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    pair = make_pair(mixtral(num_hidden_layers=3))
    over_the_batch(pair)
    tokens, real, positions = batch()
    with torch.no_grad():
        want = pair.theirs(tokens, attention_mask=real, output_router_logits=True)
        each = [load_balancing_loss_func((logits,), 6, 2, real) for logits in want.router_logits]
        _, balance = ours_of(pair, tokens, real, positions)
    torch.testing.assert_close(balance, 0.03 * sum(each) / 3, rtol=1e-5, atol=0)


def test_a_mixture_in_every_second_layer(make_pair: Any) -> None:
    pair = make_pair(qwen2_moe(num_hidden_layers=4, decoder_sparse_step=2, norm_topk_prob=True))
    assert [isinstance(kind.ffn, MoeSpec) for kind in pair.ours.spec.kinds()] == [False, True, False, True]
    tokens, _, positions = batch()
    ones = torch.ones_like(tokens)
    with torch.no_grad():
        got, _ = ours_of(pair, tokens, ones, positions)
        want = pair.theirs(tokens).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_what_a_config_cannot_say() -> None:
    config = qwen2_moe(num_hidden_layers=2, mlp_only_layers=[0]).config.to_dict()
    family = family_of(config)
    spec: Any = family.spec(config)
    with pytest.raises(UserError, match="use_sliding_window"):
        family.spec({**config, "use_sliding_window": True})
    with pytest.raises(Inexpressible, match="scale"):
        family.config(dataclasses.replace(spec, ffn=dataclasses.replace(spec.ffn, scale=2.0)))
    wide = LayerSpec(ffn=Glu(hidden=7, activation=spec.ffn.activation))
    with pytest.raises(Inexpressible, match="several widths"):
        family.config(dataclasses.replace(spec, others={**spec.others, "wide": wide}, pattern=["dense", "wide"]))
    config = mixtral(num_hidden_layers=2).config.to_dict()
    with pytest.raises(Inexpressible, match="normalize"):
        family_of(config).config(dataclasses.replace(family_of(config).spec(config), ffn=spec.ffn))


PUBLISHED = {
    "mixtral_8x7b": {
        "model_type": "mixtral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "router_aux_loss_coef": 0.02,
        "sliding_window": None,
    },
    "qwen15_moe_a2_7b": {
        "model_type": "qwen2_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "router_aux_loss_coef": 0.001,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 21,
    },
    "deepseek_v2_lite": {
        "model_type": "deepseek_v2",
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "routed_scaling_factor": 1.0,
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "attention_bias": False,
        "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
    },
}
"""The config.json of published checkpoints, as on their hub pages, by preset."""


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_are_the_published_models(preset: str) -> None:
    from llmfactory.config.compose import compose_job

    config = PUBLISHED[preset]
    spec: Any = family_of(config).spec(config)
    ours: Any = compose_job([f"model={preset}", "stage=describe"]).job.model
    if getattr(ours.attention, "n_kv_heads", 0) is None:
        spec.attention.n_kv_heads = None  # as many as heads, said or not
    assert ours == spec


@pytest.mark.parametrize("family", [mixtral, qwen2_moe, deepseek_v2])
def test_back_into_transformers(family: Any, make_pair: Any, tmp_path: Path) -> None:
    """Our config and tensors, saved as a folder, load there with equal logits."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    pair = make_pair(family(num_hidden_layers=2))
    AutoConfig.for_model(**pair.family.config(pair.ours.spec)).save_pretrained(tmp_path)
    tensors = pair.to_theirs(dict(pair.ours.named_parameters()))
    saved = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_file(saved, tmp_path / "model.safetensors", {"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens, real, positions = batch()
    with torch.no_grad():
        want = theirs(tokens, attention_mask=real).logits
        got, _ = ours_of(pair, tokens, real, positions)
    torch.testing.assert_close(got[real == 1], want[real == 1], rtol=0, atol=1e-5 * float(want.abs().max()))
